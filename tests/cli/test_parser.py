"""The command line of the participant level, from words to a configuration."""

import json
from pathlib import Path

import pytest

from lacuna_nipype import __version__
from lacuna_nipype.cli.parser import build_parser, parse_config
from lacuna_nipype.cli.record import RunRecord, recorded_config


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A folder with all inputs that flags can name, as the current folder."""
    for folder in ("bids", "bids/derivatives", "masks", "connectome"):
        (tmp_path / folder).mkdir()
    for name in ("fc.h5", "sc.tck", "filter.json", "atlas.nii.gz", "labels.tsv", "mask.nii.gz"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


FC = ("--functional-connectome", "fc.h5")


@pytest.fixture
def parse(study):
    def run(*words, places=("bids", "out"), inputs=FC):
        return parse_config([*places, "participant", *inputs, *words])

    return run


@pytest.fixture
def refused(parse, capsys):
    """Parse words that are wrong; the last line printed."""

    def run(*words, **options):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            parse(*words, **options)
        assert stop.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "Traceback" not in printed.err
        return printed.err.rstrip("\n").splitlines()[-1]

    return run


def test_defaults(parse, study):
    config = parse()
    assert (config.bids_dir, config.output_dir) == (study / "bids", study / "out")
    assert config.analysis_level == "participant"
    assert config.functional_connectome == study / "fc.h5"
    assert config.participant_label == config.session_label == config.analysis == ()
    assert config.parcel_atlases == config.custom_parcellation == config.derivatives == ()
    assert config.structural_connectome is config.mask_space is config.pattern is None
    assert (config.on_empty, config.plugin) == ("warn", "MultiProc")
    assert (config.dry_run, config.stop_on_first_crash, config.verbose) == (False, False, 0)
    assert config.nprocs >= 1
    assert config.memory_gb >= 0.5
    assert config.work_dir.name == "work"


def test_everything_given(parse, study):
    config = parse(
        *("--participant-label", "sub-01", "02", "--session-label", "ses-a", "b"),
        *("--derivatives", "lesions=masks", "connectome", "--pattern", "*acute*"),
        *("--bids-filter-file", "filter.json", "--mask-space", "MNI152NLin6Asym"),
        *("--on-empty", "skip", "--analysis", "rd", "fnm", "snm"),
        *("--structural-connectome", "sc.tck", "--structural-space", "S"),
        *("--functional-space", "F", "--parcel-atlases", "A", "B"),
        *("--plugin", "Linear", "--nprocs", "3", "--omp-nthreads", "2", "--mem", "4G"),
        *("-w", "scratch", "--dry-run", "--stop-on-first-crash", "-vv"),
    )
    assert config.participant_label == ("01", "02")
    assert config.session_label == ("a", "b")
    assert config.derivatives == (
        ("lesions", study / "masks"),
        ("connectome", study / "connectome"),
    )
    assert config.pattern == "*acute*"
    assert config.bids_filter_file == study / "filter.json"
    assert config.analysis == ("rd", "fnm", "snm")
    assert config.structural_connectome == study / "sc.tck"
    assert (config.functional_space, config.structural_space) == ("F", "S")
    assert config.parcel_atlases == ("A", "B")
    assert (config.plugin, config.nprocs, config.omp_nthreads) == ("Linear", 3, 2)
    assert config.memory_gb == 4
    assert config.work_dir == study / "scratch"
    assert config.dry_run
    assert config.stop_on_first_crash
    assert config.verbose == 2


@pytest.mark.parametrize(
    "words",
    [
        ("--participant-label", "sub-01", "01", "02"),
        ("--participant_label", "01", "sub-02"),
        ("--participant_label=sub-01",),
    ],
)
def test_labels(parse, words):
    assert parse(*words).participant_label in {("01", "02"), ("01",)}
    assert "01" in parse(*words).participant_label


def test_values_keep_their_underscores(parse, study):
    (study / "my_work").mkdir()
    config = parse("--work_dir=my_work", "--mask_space", "MNI152_2mm")
    assert config.work_dir == study / "my_work"
    assert config.mask_space == "MNI152_2mm"


def all_long_flags():
    return sorted(
        flag
        for action in build_parser()._actions
        for flag in action.option_strings
        if flag.startswith("--")
    )


@pytest.mark.parametrize("flag", [flag for flag in all_long_flags() if "-" in flag[2:]])
def test_both_spellings_of_every_flag(flag):
    spellings = [flag, "--" + flag[2:].replace("-", "_")]
    results = []
    for spelling in spellings:
        parser = build_parser()
        action = parser._option_string_actions[flag]
        values = {None: 1, "+": 1, 0: 0}.get(action.nargs, action.nargs)
        parser.exit_on_error = False
        value = str(next(iter(action.choices or "1")))
        action.type = action.choices = None
        bids = str(Path(__file__).parent)
        words = [
            bids,
            "out",
            "participant",
            spelling,
            *[value] * values,
        ]
        results.append(vars(parser.parse_args(words))[action.dest])
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "words",
    [
        ("--pini-percentile", "120"),
        ("--fnm-method", "other"),
        ("--fdr-alpha", "5"),
        ("--no-such-flag",),
        ("--participant", "01"),
        ("--plugin", "SLURMGraph"),
        ("--plugin", "Slurm"),
        ("--plugin-args", "[1]"),
        ("--use-plugin", "nowhere.yml"),
        ("--analysis", "afnm"),
        ("--on-empty", "ignore"),
        ("surplus",),
    ],
    ids=" ".join,
)
def test_what_is_not_understood_is_refused(refused, words):
    assert words[0] in refused(*words) or words[-1] in refused(*words)


@pytest.mark.parametrize(
    "words",
    [
        ("--nprocs", "0"),
        ("--nprocs", "-1"),
        ("--nprocs", "two"),
        ("--nprocs", "\N{SUPERSCRIPT TWO}"),
        ("--omp-nthreads", "1.5"),
        ("--participant-label", "sub-"),
        ("--participant-label",),
        ("--custom-parcellation", "A", "atlas.nii.gz", "labels.tsv"),
        ("--derivatives", "gone"),
        ("--derivatives", "name=gone"),
        ("--bids-filter-file", "gone.json"),
        ("--structural-connectome", "gone.tck"),
    ],
    ids=" ".join,
)
def test_wrong_values_are_refused(refused, words):
    assert words[0].lstrip("-") in refused(*words)


@pytest.mark.parametrize(
    ("text", "gb"), [("16G", 16), ("1.5G", 1.5), ("16000", 16), ("16 GB", 16), ("16g", 16)]
)
@pytest.mark.parametrize("flag", ["--mem", "--mem-mb", "--mem_mb"])
def test_memory(parse, flag, text, gb):
    assert parse(flag, text).memory_gb == pytest.approx(gb)


@pytest.mark.parametrize("text", ["x", "0", "16", ""])
def test_memory_that_is_none(refused, text):
    assert "--mem" in refused("--mem", text)


@pytest.mark.parametrize("flag", ["--nprocs", "--nthreads", "--n-cpus", "--n_cpus"])
def test_processors(parse, flag):
    assert parse(flag, "3").nprocs == 3


@pytest.mark.parametrize(
    "places",
    [("bids", "bids"), ("bids", "bids/out"), ("bids", "bids/sub-01/out"), ("bids", "./bids/")],
    ids="-".join,
)
def test_output_inside_the_dataset_is_refused(refused, places):
    assert "bids" in refused(places=places)


@pytest.mark.parametrize("name", ["derivatives/lacuna", "derivatives/a/b"])
def test_output_among_its_derivatives(parse, study, name):
    assert parse(places=("bids", f"bids/{name}")).output_dir == study / "bids" / name


def test_output_beside_a_dataset_of_a_similar_name(parse, study):
    assert parse(places=("bids", "bids2")).output_dir == study / "bids2"


def test_links_do_not_hide_that_output_is_the_dataset(refused, study):
    (study / "link").symlink_to(study / "bids")
    refused(places=("bids", "link/out"))
    refused(places=("link", "bids"))


def test_datasets_keep_the_name_of_their_link(parse, study):
    (study / "link").symlink_to(study / "bids")
    assert parse(places=("link", "out")).bids_dir == study / "link"


@pytest.mark.parametrize("work", ["bids/work", "bids", "bids/derivatives/work", "out", "."])
def test_work_folder_in_the_wrong_place(refused, work):
    assert "-w" in refused("-w", work)


def test_work_folder_inside_the_output(parse, study):
    assert parse("-w", "out/work").work_dir == study / "out" / "work"


def test_missing_dataset(refused):
    assert "nowhere" in refused(places=("nowhere", "out"))


def test_single_mask_in_place_of_a_dataset(parse, study):
    assert parse(places=("mask.nii.gz", "out")).bids_dir == study / "mask.nii.gz"


def test_missing_words(study, capsys):
    for words in ([], ["bids"], ["bids", "out"], ["bids", "out", "nothing"]):
        with pytest.raises(SystemExit) as stop:
            parse_config(words)
        assert stop.value.code == 2


def test_two_derivatives_folders_of_one_name(study, refused):
    for folder in ("a/lesions", "b/lesions"):
        (study / folder).mkdir(parents=True)
    refused("--derivatives", "a/lesions", "b/lesions")


@pytest.mark.parametrize("word", ["name=", ""])
def test_derivatives_without_a_path(refused, word):
    refused("--derivatives", word)


def test_nothing_to_compute(refused):
    reason = refused(inputs=())
    for flag in ("--parcel-atlases", "--functional-connectome", "--structural-connectome"):
        assert flag in reason


@pytest.mark.parametrize(
    ("analysis", "flag"),
    [
        ("rd", "--parcel-atlases"),
        ("fnm", "--functional-connectome"),
        ("snm", "--structural-connectome"),
    ],
)
def test_analysis_without_its_input(refused, analysis, flag):
    assert flag in refused("--analysis", analysis, inputs=())


def test_own_parcellations(parse, study):
    one = ("--custom-parcellation", "One", "atlas.nii.gz", "labels.tsv", "MNI152NLin6Asym")
    two = ("--custom_parcellation", "Two", "atlas.nii.gz", "labels.tsv", "MNI152NLin6Asym")
    config = parse(*one, *two, inputs=())
    assert [words[0] for words in config.custom_parcellation] == ["One", "Two"]
    assert config.custom_parcellation[0][1:] == (
        study / "atlas.nii.gz",
        study / "labels.tsv",
        "MNI152NLin6Asym",
    )


def test_own_parcellations_of_one_name(refused):
    words = ("--custom-parcellation", "One", "atlas.nii.gz", "labels.tsv", "MNI152NLin6Asym")
    refused(*words, words[0], "ONE", *words[2:])


@pytest.mark.parametrize("flag", ["--version", "--help", "-h"])
def test_information(flag, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_config([flag])
    assert not stop.value.code
    printed = capsys.readouterr().out
    assert (__version__ if flag == "--version" else "--functional-connectome") in printed


def test_help_explains_every_flag(capsys):
    for action in build_parser()._actions:
        assert action.help, action.option_strings


def test_configuration_is_safe_for_json(parse):
    config = parse(
        *("--derivatives", "lesions=masks", "--participant-label", "01"),
        *("--custom-parcellation", "One", "atlas.nii.gz", "labels.tsv", "MNI152NLin6Asym"),
    )
    content = config.to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["participant_label"] == ["01"]
    assert content["derivatives"][0][0] == "lesions"


def test_configuration_cannot_change(parse):
    with pytest.raises(AttributeError):
        parse().nprocs = 5


# Lists that are given several times


def parsers():
    """Every parser of the program by its name."""
    from lacuna_nipype.cli import atlas, bidsify, check, collect, connectome, fetch, tutorial

    found = {"": build_parser(), "fetch": fetch._connectome_parser()}
    for module in (atlas, bidsify, check, collect, connectome, tutorial):
        found[module.__name__.rpartition(".")[2]] = module._parser()
    for name, parser in list(found.items()):
        for action in parser._actions:
            for word, own in (
                (getattr(action, "choices", None) or {}).items()
                if (action.nargs == "A...")
                else ()
            ):
                found[f"{name} {word}"] = own
    return found


def list_options():
    return [
        pytest.param(parser, action, id=f"{name} {action.option_strings[-1]}".strip())
        for name, parser in parsers().items()
        for action in parser._actions
        if action.option_strings and action.nargs == "+"
    ]


@pytest.mark.parametrize(("parser", "action"), list_options())
def test_values_of_a_repeated_list_option_add_up(parser, action, study):
    flag = action.option_strings[-1]
    first, second, third = ["rd", "fnm", "snm"] if action.choices else ("bids", "masks", "out")
    (study / "out").mkdir()
    for other in parser._actions:
        other.required = False
    for group in parser._mutually_exclusive_groups:
        group.required = False
    words = [flag, first, second, flag, third]
    places = [f"{p.choices[0] if p.choices else 'bids'}" for p in parser._actions
              if not p.option_strings and p.nargs is None]  # fmt: skip
    convert = action.type or str
    given = vars(parser.parse_args([*places, *words]))[action.dest]
    assert given == [convert(first), convert(second), convert(third)]
    # Neither the default nor an earlier call is changed.
    assert vars(parser.parse_args([*places, flag, third]))[action.dest] == [convert(third)]
    assert vars(parser.parse_args(places))[action.dest] in ([], None)


def test_there_are_list_options_in_every_parser_that_is_known_to_have_some():
    names = {parameters.id for parameters in list_options()}
    assert {"--parcel-atlases", "--score", "--derivatives", "atlas bundle --region"} <= names
    assert {"collect --select", "connectome build --images", "check input --derivatives"} <= names
    assert len(names) >= 25


def test_repeated_lists_of_a_run(parse, study):
    config = parse(
        *("--parcel-atlases", "A", "--analysis", "rd", "--parcel-atlases", "B", "A"),
        *("-d", "one=masks", "--analysis", "fnm", "--derivatives", "two=connectome"),
    )
    assert config.parcel_atlases == ("A", "B")
    assert config.analysis == ("rd", "fnm")
    assert config.derivatives == (("one", study / "masks"), ("two", study / "connectome"))


def test_single_values_that_are_repeated(parse):
    assert parse("--mask-space", "A", "--mask-space", "B").mask_space == "B"
    assert parse("--output-resolution", "1", "--output-resolution", "2").output_resolution == 2


@pytest.mark.parametrize("words", [("-dx=masks",), ("-d", "x=masks"), ("--derivatives=x=masks",)])
def test_changes_replace_a_recorded_list(parse, study, words):
    recorded = parse("--derivatives", "y=connectome").to_dict()
    config = recorded_config(RunRecord("r", recorded), study / "bids", study / "out", words)
    assert config.derivatives == (("x", study / "masks"),)
