"""Keys: where they come from, and that they do not show."""

import copy
import logging
import pickle
import traceback

import pytest

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.remote import credentials
from lacuna_nipype.remote.credentials import Secret, find_key, key_advice, redact

KEY = "5up3r-s3cr3t/k+y="


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    """The configuration file of a user without keys."""
    for name in ("DATAVERSE_API_KEY", "FIGSHARE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(credentials, "_reported", set())
    path = tmp_path / "lacuna" / "config.yaml"
    path.parent.mkdir()
    return path


def write(path, text, mode=0o600):
    path.write_text(text)
    path.chmod(mode)


def test_secret_does_not_show():
    secret = Secret(f" {KEY}\n")
    assert secret.reveal() == KEY
    for text in (repr(secret), str(secret), f"{secret}", f"{secret:>40}", f"{[secret]}"):
        assert KEY not in text
    assert secret != KEY
    assert secret != Secret(KEY)
    assert not hasattr(secret, "__dict__")


@pytest.mark.parametrize("store", [pickle.dumps, copy.copy, copy.deepcopy])
def test_secret_is_not_stored(store):
    with pytest.raises(TypeError):
        store(Secret(KEY))


@pytest.mark.parametrize("text", ["", "  ", f"{KEY} x", f"{KEY}\r\nX-Other: 1", f"{KEY}\u00e9"])
def test_text_that_is_no_key(text):
    with pytest.raises(ValidationError) as caught:
        Secret(text)
    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("service", "variable"),
    [("dataverse", "DATAVERSE_API_KEY"), ("figshare", "FIGSHARE_API_KEY")],
)
def test_order_of_sources(service, variable, config, monkeypatch):
    assert find_key(service) is None
    write(config, f"# keys\n{service}_api_key: from-file\nother: [1, 2]\n")
    assert find_key(service).reveal() == "from-file"
    monkeypatch.setenv(variable, "from-environment")
    assert find_key(service, "").reveal() == "from-environment"
    assert find_key(service, "given").reveal() == "given"
    assert variable in key_advice(service)


def test_home_without_xdg(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".config" / "lacuna" / "config.yaml"
    path.parent.mkdir(parents=True)
    write(path, 'figshare_api_key: "at home"'.replace(" home", "-home"))
    assert find_key("figshare").reveal() == "at-home"


def test_open_file_is_reported_once(config, caplog):
    write(config, f"dataverse_api_key: {KEY}\n", 0o644)
    with caplog.at_level(logging.WARNING):
        find_key("dataverse")
        find_key("dataverse")
    assert [record.getMessage().count("chmod 600") for record in caplog.records] == [1]
    assert KEY not in caplog.text


def test_private_file_is_not_reported(config, caplog):
    write(config, f"dataverse_api_key: {KEY}\n", 0o600)
    find_key("dataverse")
    assert not caplog.records


@pytest.mark.parametrize(
    "text",
    [
        f"dataverse_api_key: {KEY}\n  bad: : indentation",
        f"dataverse_api_key: {KEY}: x",
        f'dataverse_api_key: "{KEY}',
        f"- {KEY}",
        KEY,
        "dataverse_api_key: 123456",
        f"dataverse_api_key: [{KEY}]",
        f"dataverse_api_key: '{KEY} {KEY}'",
        b"\xff\xfe" + KEY.encode(),
    ],
)
def test_damaged_file(config, text):
    config.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValidationError) as caught:
        find_key("dataverse")
    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("text", ["", "# nothing\n", "dataverse_api_key:\n", "other: 1\n"])
def test_file_without_key(config, text):
    write(config, text)
    assert find_key("dataverse") is None


def test_redact():
    secret = Secret(KEY)
    text = f"a {KEY} b {KEY} c 5up3r-s3cr3t%2Fk%2By%3D d"
    assert redact(text, None, secret) == "a *** b *** c *** d"
    assert redact("nothing here", secret) == "nothing here"
