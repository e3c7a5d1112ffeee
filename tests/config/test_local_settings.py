"""The machine owner's settings: a file, flags over it, and refusals by name."""

import pytest

from node.config.local import LocalSettings, load_local
from node.core.errors import ConfigError


def settings_file(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_flags_go_over_the_file_and_unset_flags_do_not(tmp_path):
    path = settings_file(tmp_path, 'device = "cpu"\nthreads = 2\nlisten = "/ip4/127.0.0.1/tcp/9000"\nname = "anna"\n')

    settings = load_local(path, threads=1, device=None, announce=())

    assert (settings.device, settings.threads, settings.name) == ("cpu", 1, "anna")
    assert settings.listen == ("/ip4/127.0.0.1/tcp/9000",)
    assert settings.announce == ()


def test_machine_without_a_file_has_defaults(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    assert load_local() == LocalSettings()
    assert 1 <= len(load_local().name) <= 40


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("devise = 'cpu'", "devise"),
        ("device = 'tpu'", "device"),
        ("threads = 0", "threads"),
        ("listen = ['127.0.0.1:9000']", "listen"),
        ("name = 'a\\u001b[31m'", "not valid TOML|name"),
        ("device = ", "not valid TOML"),
        ("a = " + "[" * 20_000, "not valid TOML"),
    ],
    ids=["unknown", "device", "threads", "address", "escape", "syntax", "deep"],
)
def test_wrong_setting_is_named_with_its_file(tmp_path, text, message):
    path = settings_file(tmp_path, text)

    with pytest.raises(ConfigError, match=message) as refusal:
        load_local(path)

    assert str(path) in str(refusal.value)


def test_wrong_flag_is_blamed_on_the_command_line(tmp_path):
    with pytest.raises(ConfigError, match=r"^command line: threads"):
        load_local(settings_file(tmp_path, ""), threads=-1)


def test_missing_file_that_was_asked_for_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"No such file"):
        load_local(tmp_path / "none.toml")
