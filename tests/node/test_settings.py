"""Where a setting comes from, and what is said when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from raftq.node.config import ByteCount
from raftq.node.exits import Exit, Fatal
from raftq.node.settings import FIELDS, flag, load, misspelt_variables, variable
from raftq.node.settings_table import rows

NEEDED = {"node_id": "n1", "cluster_id": "c1", "data": "/data"}
THREE = "n1=a:1,n2=b:2,n3=c:3"


def written(folder: Path, text: str) -> Path:
    file = folder / "raftq.toml"
    file.write_text(text)
    return file


def refusal(flags: dict[str, str], environ: dict[str, str] | None = None, file: Path | None = None) -> str:
    with pytest.raises(Fatal) as caught:
        load(flags, environ or {}, file)
    assert caught.value.code is Exit.CONFIG
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_last_of_file_environment_and_flags_counts(tmp_path: Path) -> None:
    file = written(tmp_path, 'heartbeat_ms = 10\nelection_ms_min = 210\nelection_ms_max = 700\nlog_level = "error"')
    environ = {"RAFTQ_HEARTBEAT_MS": "20", "RAFTQ_ELECTION_MS_MIN": "220"}
    config = load(NEEDED | {"heartbeat_ms": "30"}, environ, file)
    assert (config.heartbeat_ms, config.election_ms_min, config.election_ms_max) == (30, 220, 700)
    assert (config.log_level, config.log_format) == ("error", "auto")


def test_the_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    file = written(tmp_path, "heartbeat_ms = 10")
    assert load(NEEDED, {"RAFTQ_CONFIG": str(file)}).heartbeat_ms == 10


def test_members_are_text_or_a_table(tmp_path: Path) -> None:
    file = written(tmp_path, '[members]\nn1 = "a:1"\nn2 = "b:2"\nn3 = "c:3"')
    given = {"n1": "a:1", "n2": "b:2", "n3": "c:3"}
    assert load(NEEDED, {}, file).first_members == given
    assert load(NEEDED | {"members": THREE}, {}).first_members == given
    assert load(NEEDED | {"members": THREE}, {}).public_peer_address == "a:1"


def test_a_switch_is_true_or_false_wherever_it_stands(tmp_path: Path) -> None:
    given = NEEDED | {"members": "n2=b:2"}
    assert load(given | {"join": "true"}, {}).join
    assert load(given, {"RAFTQ_JOIN": "1"}).join
    file = written(tmp_path, "join = true")
    assert load(given, {}, file).join
    assert not load(NEEDED, {"RAFTQ_JOIN": "false"}, file).join


def test_a_node_without_members_is_its_own_cluster() -> None:
    config = load(NEEDED | {"peer_address": "host:9"}, {})
    assert config.first_members == {"n1": "host:9"}
    assert config.public_url == "http://127.0.0.1:7701"


@pytest.mark.parametrize(
    ("text", "count"), [("0", 0), ("1024", 1024), ("3B", 3), ("2KiB", 2048), ("256MiB", 256 << 20), ("1 GiB", 1 << 30)]
)
def test_bytes_have_units(text: str, count: int) -> None:
    config = load(NEEDED | {"disk_reserve_bytes": text}, {})
    assert config.disk_reserve_bytes == count
    assert isinstance(config.disk_reserve_bytes, ByteCount)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("node_id", "a b"),
        ("node_id", ""),
        ("data", ""),
        ("members", "n1"),
        ("members", "n1=a:1,n1=b:2"),
        ("members", "n1=a"),
        ("members", "n1=a:1=b:2"),
        ("api_listen", "7701"),
        ("api_url", "10.0.0.1:7701"),
        ("api_url", "http://10.0.0.1/queue"),
        ("heartbeat_ms", "4"),
        ("heartbeat_ms", "-1"),
        ("disk_reserve_bytes", "1MB"),
        ("disk_reserve_bytes", "-1"),
        ("wait_seconds_max", "nan"),
        ("wait_seconds_max", "3601"),
        ("log_level", "loud"),
        ("join", "yes"),
        ("tokens", "maybe"),
        ("api_tls_cert", "a\0b"),
    ],
)
def test_a_wrong_value_is_refused_with_the_place_and_the_value(name: str, value: str) -> None:
    needed = {key: given for key, given in NEEDED.items() if key != name}
    assert refusal(needed | {name: value}).startswith(f"{flag(name)} is {value!r}: expected ")
    assert refusal(needed, {variable(name): value}).startswith(f"{variable(name)} is {value!r}: expected ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("heartbeet_ms = 4", "did you mean heartbeat_ms"),
        ("colour = 1", "no setting 'colour'"),
        ('heartbeat_ms = "40 ms"', "expected milliseconds"),
        ("heartbeat_ms = true", "expected milliseconds"),
        ("heartbeat_ms = ", "is not TOML"),
        ("disk_reserve_bytes = true", "expected bytes"),
        ("node_id = 1", "expected name"),
        ("data = 1", "expected folder"),
        ("join = 1", "expected true or false"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    line = refusal(NEEDED, {}, written(tmp_path, text))
    assert words in line
    assert "raftq.toml" in line


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(NEEDED, {}, tmp_path / "none.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    assert "is not TOML" in refusal(NEEDED, {}, binary)


@pytest.mark.parametrize("name", NEEDED)
def test_what_is_required_is_asked_for(name: str) -> None:
    line = refusal({key: value for key, value in NEEDED.items() if key != name})
    assert flag(name) in line
    assert variable(name) in line


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"members": "n2=a:1"}, "add n1=host:port"),
        ({"join": "true"}, "members must name at least one node"),
        ({"join": "true", "members": "n1=a:1"}, "members must name at least one node"),
        ({"members": THREE, "peer_address": "z:1"}, "make them equal"),
        ({"members": "n1=0.0.0.0:1,n2=b:2"}, "cannot dial"),
        ({"peer_listen": "[::]:8701"}, "cannot dial"),
        ({"api_listen": "0.0.0.0:7701"}, "set api_url"),
        ({"api_listen": "127.0.0.1:70000"}, "65535"),
        ({"election_ms_min": "600"}, "election_ms_max"),
        ({"election_ms_min": "100"}, "3 times"),
        ({"batch_bytes_max": "1000"}, "body_bytes_max"),
        ({"batch_bytes_max": "1GiB"}, "32MiB"),
        ({"peer_tls_cert": "a"}, "peer_tls_cert is set, but not peer_tls_key and peer_tls_ca"),
        ({"peer_tls_ca": "a", "peer_tls_key": "b"}, "peer_tls_key is set, but not peer_tls_cert"),
        ({"api_tls_cert": "a"}, "api_tls_cert is set, but not api_tls_key"),
        ({"api_tls_key": "a"}, "api_tls_key is set, but not api_tls_cert"),
        ({"api_tls_cert": "a", "api_tls_key": "b", "api_url": "http://n1:7701"}, "only HTTPS is served"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: dict[str, str], words: str) -> None:
    assert words in refusal(NEEDED | given)


def test_listening_everywhere_is_fine_with_public_addresses() -> None:
    given = {"api_listen": "0.0.0.0:7701", "peer_listen": "[::]:8701", "api_url": "http://n1:7701", "members": THREE}
    config = load(NEEDED | given, {})
    assert (config.public_url, config.public_peer_address) == ("http://n1:7701", "a:1")


def test_with_a_certificate_clients_reach_the_node_at_https() -> None:
    config = load(NEEDED | {"api_tls_cert": "a", "api_tls_key": "b"}, {})
    assert config.public_url == "https://127.0.0.1:7701"
    proxied = load(NEEDED | {"api_url": "https://queue.example"}, {})
    assert proxied.public_url == "https://queue.example"


def test_misspelt_variables_are_found_and_those_of_others_are_not() -> None:
    environ = {
        "RAFTQ_HEARTBEET_MS": "1",
        "RAFTQ_URL": "http://n1",
        "RAFTQ_TOKEN": "rq_",
        "RAFTQ_CA": "ca.crt",
        "RAFTQ_DATA": "/data",
        "RAFTQ_CONFIG": "x",
        "HOME": "/",
    }
    assert misspelt_variables(environ) == ["RAFTQ_HEARTBEET_MS"]


def test_every_setting_is_described() -> None:
    assert [row.name for row in rows()] == list(FIELDS)
    for row in rows():
        assert row.kind, row.name
        assert row.help.endswith("."), row.name
