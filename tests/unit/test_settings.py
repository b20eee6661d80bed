"""The settings: defaults, sources, and every problem at once."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest

from proxy_app.errors import ConfigError
from proxy_app.settings import Settings, check_exposure, endpoint_of, load, settings_doc

ROOT = Path(__file__).resolve().parents[2]
# 128 bits in hex.
STRONG = "9f86d081884c7d659a2feaa0c55ad015"
# Those that the public interface and other tools rely on.
DEFAULTS = {
    "HOST": ("host", "127.0.0.1"),
    "PORT": ("port", 8080),
    "OLLAMA_BACKENDS": ("backends", ()),
    "OLLAMA_BASE_URL": ("base_url", "http://127.0.0.1:11434"),
    "OLLAMA_AUTH_TOKEN": ("auth_token", None),
    "WEB_CONCURRENCY": ("workers", 2),
    "REDIS_URL": ("redis_url", None),
    "DATA_DIR": ("data_dir", Path("data")),
    "CARAVAN_ANONYMOUS": ("anonymous", False),
    "CARAVAN_HOSTS": ("hosts", ()),
    "CARAVAN_ORIGINS": ("origins", ()),
    "CARAVAN_MAX_BODY": ("max_body", 67108864),
    "CARAVAN_POLL_INTERVAL": ("poll_interval_s", 2.0),
    "CARAVAN_SLOW_POLL_INTERVAL": ("slow_poll_interval_s", 10.0),
    "CARAVAN_DOWN_POLL_INTERVAL": ("down_poll_interval_s", 1.0),
    "CARAVAN_POLL_TIMEOUT": ("poll_timeout_s", 5.0),
    "CARAVAN_FALL": ("fall", 3),
    "CARAVAN_RISE": ("rise", 2),
    "CARAVAN_FORGET_AFTER": ("forget_after_s", 86400.0),
    "CARAVAN_CONNECT_TIMEOUT": ("connect_timeout_s", 2.0),
    "CARAVAN_FIRST_BYTE_TIMEOUT": ("first_byte_timeout_s", 300.0),
    "CARAVAN_IDLE_TIMEOUT": ("idle_timeout_s", 120.0),
}
# A wrong value for every kind of setting, and what the message says is expected.
WRONG = [
    ("PORT", "eighty", "whole number"),
    ("PORT", "0", "between 1 and 65535"),
    ("PORT", "65536", "between 1 and 65535"),
    ("PORT", "80.5", "whole number"),
    ("WEB_CONCURRENCY", "0", "between 1 and 256"),
    ("CARAVAN_ANONYMOUS", "maybe", "1 or 0"),
    ("CARAVAN_MAX_BODY", "-1", "at least 1024"),
    ("CARAVAN_POLL_INTERVAL", "soon", "number of seconds"),
    ("CARAVAN_POLL_INTERVAL", "-1", "at least 0"),
    ("CARAVAN_POLL_INTERVAL", "inf", "finite"),
    ("CARAVAN_POLL_INTERVAL", "nan", "finite"),
    ("CARAVAN_LOG_LEVEL", "loud", "debug, info, warning, error"),
    ("REDIS_URL", "localhost:6379", "redis://"),
    ("REDIS_URL", "http://localhost", "redis://"),
    ("OLLAMA_BASE_URL", "gpu1:11434", "http://gpu1:11434"),
    ("OLLAMA_BASE_URL", "ftp://gpu1", "http://gpu1:11434"),
    ("OLLAMA_BASE_URL", "http://", "http://gpu1:11434"),
    ("OLLAMA_BASE_URL", "http://user:word@gpu1", "without user"),
    ("OLLAMA_BASE_URL", "http://gpu1/?key=1", "query"),
    ("OLLAMA_BASE_URL", "http://gpu1:port", ""),
    ("OLLAMA_BASE_URL", "http://gpu1:99999", ""),
    ("OLLAMA_BASE_URL", "http://gpu1:0", "port"),
    ("OLLAMA_BASE_URL", "http://[::1", ""),
]
# Entries of OLLAMA_BACKENDS, and what is said about them.
WRONG_BACKENDS = [
    ("[", "JSON"),
    ("[1]", "entry 1"),
    ('["http://gpu1"]', "entry 1"),
    ('[{"name": "a"}]', "url"),
    ('[{"url": "http://a"}]', "name"),
    ('[{"name": "", "url": "http://a"}]', "name"),
    ('[{"name": "a b", "url": "http://a"}]', "name"),
    ('[{"name": 7, "url": "http://a"}]', "name"),
    ('[{"name": "a", "url": 7}]', "url"),
    ('[{"name": "a", "url": "http://a", "prio": 1}]', "prio"),
    ('[{"name": "a", "url": "http://a", "priority": "1"}]', "priority"),
    ('[{"name": "a", "url": "http://a", "priority": true}]', "priority"),
    ('[{"name": "a", "url": "http://a", "priority": 1.5}]', "priority"),
    ('[{"name": "a", "url": "http://a", "slots": "many"}]', "slots"),
    ('[{"name": "a", "url": "http://a", "cloud": 1}]', "cloud"),
    ('[{"name": "a", "url": "http://a", "headers": ["X"]}]', "headers"),
    ('[{"name": "a", "url": "http://a", "headers": {"X Y": "1"}}]', "headers"),
    ('[{"name": "a", "url": "http://a", "headers": {"X": 1}}]', "headers"),
    ('[{"name": "a", "url": "http://a", "auth_token": 7}]', "auth_token"),
    ('[{"name": "a", "url": "http://a", "auth_token": "a\\r\\nX: 1"}]', "auth_token"),
    ('[{"name": "a", "url": "http://a", "headers": {"X": "1\\nY: 2"}}]', "headers"),
    ("http://gpu1:11434", "name=url"),
    ("gpu1=", "url"),
    ("=http://gpu1", "name"),
    ("a=http://a,a=http://b", "twice"),
    ("a=http://a,A=http://b", "twice"),
]


def read(environ: dict[str, str]) -> Settings:
    return load(environ, None)


def problems(environ: dict[str, str], dotenv: Path | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(environ, dotenv)
    return caught.value.problems


def test_an_empty_environment_gives_the_documented_defaults() -> None:
    found = read({})
    assert {env: getattr(found, name) for env, (name, _) in DEFAULTS.items()} == {
        env: value for env, (_, value) in DEFAULTS.items()
    }


def written(value: object) -> str:
    """A value as an operator writes it down."""
    if isinstance(value, tuple):
        return ",".join(value)
    return "1" if value is True else "0" if value is False else str(value)


def test_every_default_is_a_value_that_its_own_reader_accepts() -> None:
    """Else the documented default could not be written down by an operator."""
    for spec in dataclasses.fields(Settings):
        if spec.default not in (None, ()):
            raw = written(spec.default)
            assert spec.metadata["read"](raw) == spec.default, spec.name


def test_every_setting_has_a_help_and_numbers_a_unit() -> None:
    bare = {"port", "attempts"}
    for spec in dataclasses.fields(Settings):
        assert spec.metadata["help"].endswith("."), spec.name
        if isinstance(spec.default, (int, float)) and not isinstance(spec.default, bool) and spec.name not in bare:
            assert spec.metadata["unit"], spec.name


@pytest.mark.parametrize("name", sorted(DEFAULTS))
@pytest.mark.parametrize("nothing", ["", "  "])
def test_an_empty_value_counts_as_not_set(name: str, nothing: str) -> None:
    field, default = DEFAULTS[name]
    assert getattr(read({name: nothing}), field) == default


@pytest.mark.parametrize(("name", "value", "expected"), WRONG)
def test_a_wrong_value_names_the_setting_and_what_is_expected(name: str, value: str, expected: str) -> None:
    (problem,) = problems({name: value})
    assert problem.startswith(f"{name}: ")
    assert expected in problem


def test_all_problems_are_reported_at_once() -> None:
    environ = {name: value for name, value, _ in WRONG}
    found = problems({**environ, "CARAVAN_TYPO": "1", "OLLAMA_BACKENDS": "a"})
    assert {problem.partition(":")[0] for problem in found} == {*environ, "CARAVAN_TYPO", "OLLAMA_BACKENDS"}


def test_all_problems_of_all_backends_are_reported_at_once() -> None:
    (problem,) = problems({"OLLAMA_BACKENDS": "a=ftp://a,b=http://b,c=,b=http://c"})
    assert [word in problem for word in ("entry 1", "entry 2", "entry 3", "twice")] == [True, False, True, True]


def test_a_wrong_secret_is_not_repeated_in_the_message() -> None:
    (problem,) = problems({"REDIS_URL": "http://:hunter2@redis"})
    assert "hunter2" not in problem
    (problem,) = problems({"OLLAMA_BACKENDS": '[{"name": "a", "url": "http://a", "auth_token": "hunter2\\n"}]'})
    assert "hunter2" not in problem


# -- names -----------------------------------------------------------------------------------------


def test_an_unknown_caravan_name_stops_the_start_and_the_likely_one_is_offered() -> None:
    (problem,) = problems({"CARAVAN_POLL_INTERVALL": "2"})
    assert problem.startswith("CARAVAN_POLL_INTERVALL: ")
    assert "CARAVAN_POLL_INTERVAL?" in problem


def test_other_programs_names_are_none_of_our_business() -> None:
    read({"OLLAMA_HOST": "0.0.0.0", "PATH": "/bin", "REDIS_HOST": "x", "PORTS": "1"})


def test_only_secrets_may_stand_in_a_file(tmp_path: Path) -> None:
    """CARAVAN_FALL_FILE would be read by nobody: a name of ours that does nothing is an error."""
    (problem,) = problems({"CARAVAN_FALL_FILE": str(tmp_path)})
    assert "CARAVAN_FALL_FILE" in problem


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("OLLAMA_AUTH_TOKEN", "sesame\n", "auth_token", "sesame"),
        ("REDIS_URL", "rediss://:word@redis:6379/0\n", "redis_url", "rediss://:word@redis:6379/0"),
    ],
)
def test_a_secret_may_stand_in_a_file(tmp_path: Path, name: str, text: str, field: str, value: str) -> None:
    path = tmp_path / "secret"
    path.write_text(text)
    assert getattr(read({f"{name}_FILE": str(path)}), field) == value


def test_backends_with_tokens_may_stand_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "backends.json"
    path.write_text(json.dumps([{"name": "a", "url": "http://a", "auth_token": "sesame"}], indent=2))
    (backend,) = read({"OLLAMA_BACKENDS_FILE": str(path)}).fleet
    assert backend.auth_token == "sesame"


def test_a_secrets_file_that_is_not_there_is_a_problem_like_any_other(tmp_path: Path) -> None:
    found = problems({"OLLAMA_AUTH_TOKEN_FILE": str(tmp_path / "none"), "PORT": "x"})
    assert [problem.partition(":")[0] for problem in found] == ["PORT", "OLLAMA_AUTH_TOKEN_FILE"]


def test_a_secrets_file_that_is_not_text_is_a_problem_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"\xff\xfe\x00")
    (problem,) = problems({"OLLAMA_AUTH_TOKEN_FILE": str(path)})
    assert problem.startswith("OLLAMA_AUTH_TOKEN")


def test_a_secret_and_its_file_at_once_are_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("one")
    (problem,) = problems({"OLLAMA_AUTH_TOKEN": "two", "OLLAMA_AUTH_TOKEN_FILE": str(path)})
    assert "not both" in problem


def test_secrets_are_not_in_the_settings_text() -> None:
    found = read({"OLLAMA_AUTH_TOKEN": "sesame", "REDIS_URL": "redis://:sesame@redis"})
    backends = read(
        {"OLLAMA_BACKENDS": '[{"name":"a","url":"http://a","auth_token":"sesame","headers":{"X":"sesame"}}]'}
    )
    assert "sesame" not in repr(found) + repr(backends) + repr(backends.fleet) + repr(found.fleet)


# -- .env ------------------------------------------------------------------------------------------


def test_a_dotenv_file_is_read_and_the_environment_wins(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("PORT=1111\nWEB_CONCURRENCY=4\n")
    found = load({"PORT": "2222"}, path)
    assert (found.port, found.workers) == (2222, 4)


def test_an_empty_value_of_the_environment_wins_too(tmp_path: Path) -> None:
    """So that a start can switch off what the file sets."""
    path = tmp_path / ".env"
    path.write_text("REDIS_URL=redis://redis\nPORT=1111\n")
    found = load({"REDIS_URL": "", "PORT": ""}, path)
    assert (found.redis_url, found.port) == (None, 8080)


def test_a_dotenv_file_may_hold_json_quotes_comments_and_dollars(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text(
        "# a comment\nexport PORT=1111\n"
        'OLLAMA_BACKENDS=\'[{"name":"a","url":"http://a",\n  "auth_token":"pa$word${HOME}"}]\'\n'
    )
    found = load({"HOME": "/nowhere"}, path)
    assert (found.port, found.fleet[0].auth_token) == (1111, "pa$word${HOME}")


def test_unknown_and_wrong_names_of_a_dotenv_file_are_problems_too(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("PORT=x\nCARAVAN_TYPO=1\nANYTHING=1\n")
    assert {problem.partition(":")[0] for problem in problems({}, path)} == {"PORT", "CARAVAN_TYPO"}


def test_no_dotenv_file_is_no_problem(tmp_path: Path) -> None:
    assert load({}, tmp_path / ".env").port == 8080


# -- the fleet -------------------------------------------------------------------------------------


def test_both_forms_of_backends_mean_the_same() -> None:
    short = read({"OLLAMA_BACKENDS": "gpu1=http://a:11434, gpu2 = http://b:11434/ollama/ ,"})
    long = read(
        {"OLLAMA_BACKENDS": '[{"name":"gpu1","url":"http://a:11434"},{"name":"gpu2","url":"http://b:11434/ollama"}]'}
    )
    assert short.fleet == long.fleet
    assert [(backend.name, backend.url) for backend in short.fleet] == [
        ("gpu1", "http://a:11434"),
        ("gpu2", "http://b:11434/ollama"),
    ]


def test_all_fields_of_a_backend_are_read() -> None:
    entry = {
        "name": "a",
        "url": "https://a",
        "auth_token": "t",
        "headers": {"X-Team": "blue"},
        "priority": 0,
        "slots": 4,
        "kind": "ollama",
        "cloud": False,
    }
    (backend,) = read({"OLLAMA_BACKENDS": json.dumps([entry])}).fleet
    assert dataclasses.asdict(backend) == {**entry, "headers": (("X-Team", "blue"),)}


def test_a_null_field_counts_as_left_out() -> None:
    (backend,) = read({"OLLAMA_BACKENDS": '[{"name":"a","url":"http://a","priority":null,"auth_token":null}]'}).fleet
    assert (backend.priority, backend.auth_token) == (None, None)


@pytest.mark.parametrize(("raw", "expected"), WRONG_BACKENDS)
def test_a_wrong_backend_says_which_and_what(raw: str, expected: str) -> None:
    (problem,) = problems({"OLLAMA_BACKENDS": raw})
    assert problem.startswith("OLLAMA_BACKENDS: ")
    assert expected in problem


@pytest.mark.parametrize("raw", ["", "[]", ",", " "])
def test_without_backends_there_is_one_default(raw: str) -> None:
    environ = {"OLLAMA_BACKENDS": raw, "OLLAMA_BASE_URL": "http://box:11434/", "OLLAMA_AUTH_TOKEN": "t"}
    (backend,) = read(environ).fleet
    assert (backend.name, backend.url, backend.auth_token) == ("default", "http://box:11434", "t")


# -- who may reach it ------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_a_loopback_address_needs_no_permission(host: str) -> None:
    check_exposure(read({"HOST": host}), has_keys=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "192.168.1.2", "10.0.0.1", "gpu1", "example.com"])
def test_any_other_address_is_refused_until_it_is_said(host: str) -> None:
    with pytest.raises(ConfigError, match="CARAVAN_ANONYMOUS=1"):
        check_exposure(read({"HOST": host}), has_keys=False)
    check_exposure(read({"HOST": host, "CARAVAN_ANONYMOUS": "1"}), has_keys=False)


def test_a_public_address_is_served_where_somebody_has_a_key() -> None:
    check_exposure(read({"HOST": "0.0.0.0"}), has_keys=True)
    check_exposure(read({"HOST": "0.0.0.0", "CARAVAN_ADMIN_KEY": STRONG}), has_keys=False)


def test_the_refusal_says_what_to_do() -> None:
    with pytest.raises(ConfigError) as caught:
        check_exposure(read({"HOST": "0.0.0.0"}), has_keys=False)
    for way in ("caravan keys create", "CARAVAN_ADMIN_KEY", "CARAVAN_ANONYMOUS=1", "HOST=127.0.0.1"):
        assert way in str(caught.value)


# -- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [STRONG, STRONG.upper(), "kT3_9vQz7LmWx2RfB8-nYc5HdJ", "correct horse battery staple and some"],
)
def test_a_strong_admin_key_is_taken(text: str) -> None:
    assert read({"CARAVAN_ADMIN_KEY": text}).admin_key == text


@pytest.mark.parametrize("size_bytes", [16, 32])
def test_what_openssl_prints_is_strong(size_bytes: int) -> None:
    for seed in range(300):
        key = random.Random(seed).randbytes(size_bytes).hex()
        assert read({"CARAVAN_ADMIN_KEY": key}).admin_key == key


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "hunter2",
        STRONG[:31],
        "1" * 200,
        "ab" * 100,
        "0123456789abcdef" * 4,
        "sk-1234",
        "sk-1234" + STRONG,
        "changeme" + STRONG,
        "my-password-" + STRONG,
    ],
)
def test_a_weak_admin_key_is_refused_in_words_that_do_not_repeat_it(text: str) -> None:
    with pytest.raises(ConfigError, match="CARAVAN_ADMIN_KEY: expected at least 128 random bits") as caught:
        read({"CARAVAN_ADMIN_KEY": text})
    assert len(text) < 8 or text not in str(caught.value)


def test_an_admin_key_may_stand_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"{STRONG}\n")
    settings = read({"CARAVAN_ADMIN_KEY_FILE": str(path)})
    assert settings.admin_key == STRONG
    assert STRONG not in repr(settings)
    path.write_text("weak")
    with pytest.raises(ConfigError, match="128 random bits"):
        read({"CARAVAN_ADMIN_KEY_FILE": str(path)})


def test_anonymous_scopes_are_words_of_the_list() -> None:
    assert read({}).anonymous_scopes == ("infer", "read")
    assert read({"CARAVAN_ANONYMOUS_SCOPES": "read, metrics"}).anonymous_scopes == ("read", "metrics")
    with pytest.raises(ConfigError, match=r"CARAVAN_ANONYMOUS_SCOPES: expected some of .* not root"):
        read({"CARAVAN_ANONYMOUS_SCOPES": "read root"})


# -- the page --------------------------------------------------------------------------------------


def test_the_settings_page_is_what_the_table_says() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == settings_doc(), "run `make docs`"


def test_the_settings_page_names_every_setting() -> None:
    page = settings_doc()
    for spec in dataclasses.fields(Settings):
        assert f"`{spec.metadata['env']}`" in page
        if spec.metadata["secret"]:
            assert f"`{spec.metadata['env']}_FILE`" in page


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("http://gpu1", "HTTP://GPU1:80/", True),
        ("https://gpu1:443", "https://gpu1", True),
        ("http://gpu1:11434", "http://gpu1.:11434", True),
        ("http://[::1]:11434", "http://[::1]:11434/", True),
        ("http://gpu1", "https://gpu1", False),
        ("http://gpu1", "http://gpu1:11434", False),
        ("http://gpu1/a", "http://gpu1/A", False),
    ],
)
def test_a_server_is_known_however_its_address_is_written(one: str, other: str, is_same: bool) -> None:
    assert (endpoint_of(one) == endpoint_of(other)) == is_same
