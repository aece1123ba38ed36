"""What can be typed, what it means, and what is said when it is wrong."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock import errors
from penstock.cli import infer, logs, main, messages, show
from penstock.cli.cluster import device_row, pool_row, problems, version_row, version_state
from penstock.cli.parser import UsageError, build
from penstock.cli.show import Screen
from penstock.oip import inference_pb2 as oip
from penstock.v1 import cluster_pb2 as cluster
from penstock.v1 import models_pb2 as pb

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = [
    "publish",
    "models",
    "versions",
    "alias",
    "delete",
    "deploy",
    "deployments",
    "drain",
    "undrain",
    "undeploy",
    "infer",
    "status",
    "tenant",
    "init",
    "logs",
]


def parse(line: str) -> Any:
    return build().parse_args(line.split())


# the command line


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build().parse_args([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"examples:\n  penstock {command}" in text
    for option in ("--address", "--token", "--timeout", "--json"):
        assert option in text


def test_help_names_commands_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build().parse_args(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n    {command} " in text for command in COMMANDS)
    assert all(f"\n  {code} " in text for code in (0, 1, 2, 3, 4, 5, 130))


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from penstock.cli.main import main
try: main(["--help"])
except SystemExit: pass
print([name for name in ("grpc", "google.protobuf", "numpy", "yaml", "rich", "onnx") if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


@pytest.mark.parametrize("line", ["--json --address a:1 --timeout 5 models", "models --json --address a:1 --timeout 5"])
def test_shared_options_go_before_or_after_the_command(line: str) -> None:
    args = parse(line)
    assert (args.json, args.address, args.timeout) == (True, "a:1", 5.0)


def test_references() -> None:
    assert parse("status").name is None
    assert parse("deploy m").reference == ("m", None)
    assert parse("deploy m@3 --replicas 2").reference == ("m", 3)
    assert parse("deploy m@prod").reference == ("m", "prod")
    assert parse("undeploy m").reference == ("m", 0)
    assert parse("delete m@2").reference == ("m", 2)
    assert parse("alias m prod 3 --expect 0").expect == 0
    assert parse("models a b --tag k=v=w").tag == [("k", "v=w")]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "fly",
        "deploy ../m",
        "deploy m@0",
        "deploy m@",
        "deploy m --replicas 0",
        "delete m",
        "delete m@prod",
        "undeploy m@prod",
        "alias m 1st 3",
        "alias m prod -3",
        "models --tag novalue",
        "infer m",
        "infer m --input x=1 --request f",
        "infer m --input novalue",
        "status --watch --wait",
        "status m --timeout -1",
        "status m --timeout inf",
        "models --jso",
        "logs -n x",
    ],
)
def test_wrong_usage_is_told_before_anything_is_sent(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError):
        parse(line)
    assert main.main(line.split()) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith("penstock: ")
    assert "usage: penstock" in written.err


def test_wrong_usage_is_an_object_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["deploy", "../m", "--json"]) == 2
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["code"] == "USAGE"
    assert "../m" in error["message"]


@pytest.mark.parametrize(
    "line",
    ["publish x --wait", "alias m prod", "alias m prod 3 --delete", "deploy", "deploy m -f f", "deploy -f f --max 2"],
)
def test_options_that_need_each_other(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(line.split()) == 2


@pytest.mark.parametrize("kind", errors.ALL)
def test_every_error_has_an_exit_code(kind: type[errors.PenstockError]) -> None:
    wanted = {
        errors.NotFound: 3,
        errors.Unavailable: 4,
        errors.DeadlineExceeded: 4,
        errors.ResourceExhausted: 4,
        errors.AlreadyExists: 5,
        errors.Conflict: 5,
        errors.InUse: 5,
        errors.GateFailed: 5,
    }
    assert main.exit_code(kind("x")) == wanted.get(kind, 1)


def test_a_gateway_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--address", "127.0.0.1:1", "models"]) == 4
    assert "the gateway does not answer" in capsys.readouterr().err
    assert main.main(["--address", "http://x", "models"]) == 1


# values on the command line


SPECS = {
    "text": oip.ModelMetadataResponse.TensorMetadata(name="text", datatype="BYTES", shape=[-1, 1]),
    "one": oip.ModelMetadataResponse.TensorMetadata(name="one", datatype="BYTES", shape=[1]),
    "x": oip.ModelMetadataResponse.TensorMetadata(name="x", datatype="FP32", shape=[-1, 3]),
    "n": oip.ModelMetadataResponse.TensorMetadata(name="n", datatype="INT64", shape=[-1, 1]),
}


@pytest.mark.parametrize(
    ("name", "text", "shape", "data"),
    [
        ("text", "hi", (1, 1), b"\x02\x00\x00\x00hi"),
        ("text", '["a","b"]', (2, 1), b"\x01\x00\x00\x00a\x01\x00\x00\x00b"),
        ("text", "[not json", (1, 1), b"\x09\x00\x00\x00[not json"),
        ("text", "[1]", (1, 1), b"\x03\x00\x00\x00[1]"),
        ("one", "hi", (1,), b"\x02\x00\x00\x00hi"),
        ("n", "5", (1, 1), b"\x05" + bytes(7)),
        ("n", "[5]", (1, 1), b"\x05" + bytes(7)),
        ("x", "[[0,0,0],[0,0,0]]", (2, 3), bytes(24)),
    ],
)
def test_what_a_value_means(name: str, text: str, shape: tuple[int, ...], data: bytes) -> None:
    tensor = infer.input_tensor(name, text, SPECS)
    assert (tensor.shape, tensor.data) == (shape, data)


def test_files_as_values(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"[1,2,3]")
    assert infer.input_tensor("text", f"@{tmp_path}/f", SPECS).data == b"\x07\x00\x00\x00[1,2,3]"
    assert infer.input_tensor("x", f"@{tmp_path}/f", SPECS).shape == (1, 3)
    with pytest.raises(errors.InvalidArgument, match="No such file"):
        infer.input_tensor("x", "@/nowhere", SPECS)


@pytest.mark.parametrize(
    ("name", "text", "message"), [("x", "abc", "give JSON"), ("y", "1", "the model has: text, one, x")]
)
def test_wrong_values(name: str, text: str, message: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=message):
        infer.input_tensor(name, text, SPECS)


def test_requests_in_the_protocols_json() -> None:
    entry = {"name": "a", "datatype": "INT8", "shape": [2, 2], "data": [[1, 2], [3, 4]]}
    assert infer.request_inputs({"inputs": [entry]})["a"].data == b"\x01\x02\x03\x04"
    for wrong, message in [
        ({}, "needs inputs"),
        ({"inputs": [{"name": "a"}]}, r"inputs\[0\] lacks datatype"),
        ({"inputs": [{**entry, "shape": [3]}]}, r"inputs\[0\]: 4 values do not fill"),
    ]:
        with pytest.raises(errors.InvalidArgument, match=message):
            infer.request_inputs(wrong)


def test_previews_are_short_and_rounded() -> None:
    assert infer.preview([[0.123456, 2.0]]) == "[[0.1235, 2.0]]"
    assert len(infer.preview(list(range(1000)))) == 72


# what is shown


def test_tables_line_up_and_nothing_is_obeyed() -> None:
    table = show.plain_table(("A", "LONG"), [("x\x1b[2Jy", ("b", "red")), ("1", "2")])
    assert table == "A          LONG\nx\\x1b[2Jy  b\n1          2\n"


def test_a_screen_in_a_pipe_writes_plain_text() -> None:
    out, err = io.StringIO(), io.StringIO()
    screen = Screen(out=out, err=err)
    screen.table(("A",), [], empty="none")
    with screen.progress() as bar:
        bar("file", 5, 10)
        bar("file", 10, 10)
    screen.error("wrong", hint="do this", code="X")
    assert out.getvalue() == "none\n"
    assert err.getvalue() == "file: 10 B\npenstock: wrong\n  do this\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_on_a_terminal_and_none_when_unwanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = Terminal()
    Screen(out=coloured).table(("A",), [(("[bold]x[/bold]", "red"),)])
    assert "\x1b[" in coloured.getvalue()
    assert "[bold]x[/bold]" in coloured.getvalue()
    bars = Terminal()
    with Screen(err=bars).progress() as bar:
        bar("empty", 0, 0)
        bar("file", 10, 10)
    assert "file" in bars.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    Screen(out=plain).table(("A",), [(("x", "red"),)])
    assert plain.getvalue() == "A\nx\n"


def test_json_is_json_whatever_the_numbers_are() -> None:
    out = io.StringIO()
    Screen(as_json=True, out=out).data({"a": [float("nan"), float("-inf"), 1.5]})
    assert json.loads(out.getvalue()) == {"a": ["NaN", "-Infinity", 1.5]}


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB"), (1 << 55, "32768.0 TiB")]
)
def test_sizes(count: int, text: str) -> None:
    assert show.size(count) == text


def test_messages_become_plain_values() -> None:
    version = pb.ModelVersion(name="m", version=1 << 60, aliases=["prod"])
    version.artifacts["model"].size_bytes = 5
    version.create_time.FromJsonString("2026-01-02T03:04:05Z")
    version.manifest.preprocess.add().image.width = 8
    plain = messages.plain(version)
    assert (plain["version"], plain["aliases"], plain["deployed"]) == (1 << 60, ["prod"], False)
    assert plain["artifacts"] == {"model": {"digest": "", "size_bytes": 5}}
    assert plain["create_time"] == "2026-01-02T03:04:05Z"
    assert list(plain["manifest"]["preprocess"][0]) == ["image"]
    assert messages.plain(pb.ModelVersion())["create_time"] is None
    replica = cluster.ReplicaStatus(state=cluster.REPLICA_STATE_READY)
    assert messages.plain(replica)["state"] == "REPLICA_STATE_READY"
    assert messages.when(version.create_time) == "2026-01-02 03:04:05"
    json.dumps(plain)


def test_status_rows_say_what_is_wrong() -> None:
    version = cluster.VersionStatus(name="m", version=2, wanted=3, ready=1, aliases=["prod"], default_version=True)
    version.unplaced_reason = "no worker has 2 GiB"
    version.replicas.add(worker="a", state=cluster.REPLICA_STATE_READY)
    version.replicas.add(worker="b", state=cluster.REPLICA_STATE_FAILED, reason="bad file")
    assert version_row(version) == ("m@2", "prod (default)", "1/3", ("failed", "bold red"), "", "a, b failed")
    assert problems(cluster.ClusterStatus(versions=[version])) == [
        "m@2: 1 of 3 not placed: no worker has 2 GiB",
        "m@2: failed on b: bad file",
    ]


def test_status_rows_say_how_a_number_moves() -> None:
    version = cluster.VersionStatus(name="m", version=2)
    version.scaling.max_replicas = 4
    assert version_row(version)[2:5] == ("0/0", ("cold", "blue"), "0 to 4")
    version.scaling.reason, version.scaling.waiting, version.wanted = "called while at zero", 3, 1
    assert version_row(version)[2:5] == ("0/1", ("waiting", "yellow"), "0 to 4: called while at zero, 3 wait")


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({"wanted": 1, "ready": 1}, "ready"),
        ({"wanted": 1, "ready": 1, "retiring": True}, "retiring"),
        ({"wanted": 1, "unplaced_reason": "x"}, "not placed"),
        ({"wanted": 1, "replicas": [cluster.ReplicaStatus(state=cluster.REPLICA_STATE_PULLING)]}, "pulling"),
        ({"wanted": 1}, "waiting"),
    ],
)
def test_one_word_for_a_version(fields: dict[str, Any], state: str) -> None:
    assert version_state(cluster.VersionStatus(**fields)) == state


# logs


def entry(time: str, event: str, **more: Any) -> str:
    return json.dumps({"timestamp": f"2026-01-02T03:04:{time}Z", "level": "info", "event": event, **more})


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "logs").mkdir()
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path))
    (tmp_path / "logs" / "worker-1.log").write_text(entry("01", "a") + "\n" + entry("03", "c") + "\nTraceback!\n")
    (tmp_path / "logs" / "worker-2.log").write_text(entry("02", "b", port=1, process="p") + "\n")
    (tmp_path / "logs" / "gateway.log").write_text(entry("00", "first", exception="Boom\n  line") + "\n")
    return tmp_path / "logs"


def test_logs_of_several_processes_in_the_order_of_time(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["logs", "worker"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == ["a", "port=1", "c", "Traceback!"]
    assert lines[1].split() == ["03:04:02", "info", "worker-2", "b", "port=1"]
    assert main.main(["logs", "gateway", "-n", "1"]) == 0
    assert capsys.readouterr().out.endswith("first\nBoom\n  line\n")


def test_raw_logs_are_json_lines(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["logs", "--json", "--lines", "1"]) == 0
    read = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("event") for line in read] == [None, "first", "b"]
    assert read[0] == {"process": "worker-1", "text": "Traceback!"}


def test_no_logs_is_not_found(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["logs", "nobody"]) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert main.main(["logs", "../worker-1"]) == 3


def test_a_tail_survives_half_lines_and_replaced_files(tmp_path: Path) -> None:
    path = tmp_path / "w.log"
    path.write_text("one\ntw")
    tail = logs.Tail(path)
    assert [line.text for line in tail.last(5)] == ["one"]
    with path.open("a") as file:
        file.write("o\nthree\n")
    assert [line.text for line in tail.new()] == ["two", "three"]
    path.write_text("new\n")
    assert [line.text for line in tail.new()] == ["new"]
    path.rename(tmp_path / "old")
    assert list(tail.new()) == []
    path.write_text("newer, and longer\n")
    assert [line.text for line in tail.new()] == ["newer, and longer"]
    tail.close()


def test_a_pool_says_why_it_is_as_it_is_and_first_of_all_what_is_in_the_way() -> None:
    pool = cluster.PoolStatus(name="cpu", workers=1, wanted=2, least=1, most=4, reason="b@1 has no place")
    assert pool_row(pool) == ("cpu", "1", "2", "1 to 4", "b@1 has no place")
    pool.problem = "the command is gone"
    assert pool_row(pool)[-1] == ("the command is gone", "red")


def test_a_device_that_is_cordoned_is_seen_and_told() -> None:
    worker = cluster.WorkerStatus(id="w1")
    worker.devices.add(index=0, kind="gpu", name="H200", memory_bytes=4 << 30, reserved_bytes=1 << 30)
    worker.devices.add(index=1, kind="gpu", name="H200", memory_bytes=4 << 30, cordoned=True)
    assert [device_row(worker, device) for device in worker.devices] == [
        ("gpu 0", "w1", "H200", "1.0 GiB", "4.0 GiB", ("ready", "green")),
        ("gpu 1", "w1", "H200", "0 B", "4.0 GiB", ("cordoned", "red")),
    ]
    assert problems(cluster.ClusterStatus(workers=[worker])) == [
        "gpu 1 of w1 was lost again and again and is not used; see to it, then start the worker anew"
    ]
