"""Every interface follows the same rules; one lint for all of them."""

import inspect
import re
import subprocess
import sys

import pytest
from nipype.interfaces.base import isdefined, traits

from lacuna_nipype import interfaces

# nipype's list (tools/checkspecs.py), with what traits itself puts there.
ALLOWED_METADATA = set(
    re.findall(
        r"\w+",
        """
        desc genfile xor requires nohash argstr position mandatory copyfile usedefault sep
        hash_files deprecated new_name min_ver max_ver name_source name_template keep_extension
        units output_name extensions
        type copy parent instance_handler comparison_mode array default editor
        """,
    )
)
THREADS = {"num_threads", "nthreads", "n_procs", "omp_nthreads"}


@pytest.fixture(params=interfaces.__all__)
def interface(request):
    return getattr(interfaces, request.param)


def own_traits(spec):
    """Traits that a specification declares, by name; those of traits and nipype left out."""
    return {
        name: trait
        for name, trait in spec().traits(transient=None).items()
        if name not in {"args", "environ"}
    }


def both_specs(interface):
    specs = [interface.input_spec, interface.output_spec]
    return [(spec, name, trait) for spec in specs for name, trait in own_traits(spec).items()]


def explicit_default(trait):
    """Whether a default other than the type's own empty one was given."""
    kind, value = trait.default_value()
    if kind in (5, 6, 9):  # list, dict, list object: traits makes an empty one by itself
        return bool(value)
    return isdefined(value) and value not in (None, "", 0, 0.0, False, b"")


def test_names_and_documentation(interface):
    assert interface.__doc__
    assert interface.__doc__ != interface.__mro__[1].__doc__
    for kind in ("Input", "Output"):
        spec = interface.__dict__.get(f"{kind.lower()}_spec")
        # A subclass may take a specification over as it is.
        assert spec is None or spec.__name__ == f"_{interface.__name__}{kind}Spec"


def test_every_trait_says_what_it_is(interface):
    silent = [name for _, name, trait in both_specs(interface) if not (trait.desc or "").strip()]
    assert silent == []


def test_metadata_keys_are_those_of_nipype(interface):
    unknown = {
        f"{spec.__name__}.{name}: {key}"
        for spec, name, trait in both_specs(interface)
        for key in trait.__dict__
        if key not in ALLOWED_METADATA
    }
    assert unknown == set()


def test_mandatory_is_written_only_where_it_holds(interface):
    wrong = [
        name
        for _, name, trait in both_specs(interface)
        if "required" in trait.__dict__ or trait.mandatory is False
    ]
    assert wrong == []


def test_defaults_are_used(interface):
    """Without ``usedefault`` nipype hands the interface ``<undefined>`` instead."""
    ignored = [
        name
        for name, trait in own_traits(interface.input_spec).items()
        # An Enum has its first value and a Range its lower end without anyone's saying so.
        if not isinstance(trait.trait_type, traits.Enum | traits.BaseRange)
        and explicit_default(trait)
        and not trait.usedefault
    ]
    assert ignored == []


def test_thread_counts_do_not_invalidate_the_cache(interface):
    hashed = [
        name
        for name, trait in own_traits(interface.input_spec).items()
        if name in THREADS and not trait.nohash
    ]
    assert hashed == []


def test_run_interface_is_thin(interface):
    own = interface.__dict__.get("_run_interface")
    if own is not None:
        assert len(inspect.getsource(own).splitlines()) <= 30


@pytest.mark.parametrize("package", ["interfaces", "workflows"])
def test_import_is_light(package):
    names = ", ".join(f"lacuna_nipype.{package}.{module}" for module in modules_of(package))
    script = (
        f"import sys, lacuna_nipype.{package}, {names}; "
        "print(sorted({'nilearn', 'matplotlib', 'bids', 'templateflow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def modules_of(package):
    module = __import__(f"lacuna_nipype.{package}", fromlist=["_MODULES"])
    return sorted(set(module._MODULES.values()))


def test_names_resolve_and_others_do_not():
    assert set(interfaces.__all__) == set(dir(interfaces))
    with pytest.raises(AttributeError):
        _ = interfaces.NoSuchInterface
