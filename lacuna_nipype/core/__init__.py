"""Pure numerics on arrays, affines and plain values; no nipype, no network."""
