"""Resources and plugins: how a graph is run."""
