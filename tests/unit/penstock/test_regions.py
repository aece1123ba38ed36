"""Names, keys, bounds and the opening of shared memory: what may be, and that nothing else is opened."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock import regions
from penstock.errors import InvalidArgument
from penstock.oip import inference_pb2 as oip
from penstock.regions import Reference, Region
from services.worker.host import arena
from tests.harness.shared_memory import path_of, shared_object

EDGES = [0, 1, 63, 64, 65, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
numbers = st.one_of(st.sampled_from([*EDGES, -1, -(2**63)]), st.integers(-(2**64), 2**65))


def parameter(value: Any) -> oip.InferParameter:
    kind = "bool" if isinstance(value, bool) else "int64" if isinstance(value, int) else "string"
    return oip.InferParameter(**{f"{kind}_param": value})


def parameters(**given: Any) -> dict[str, oip.InferParameter]:
    return {f"shared_memory_{name}": parameter(value) for name, value in given.items()}


@pytest.mark.parametrize("name", ["a", "_x", "input_data", "0", "a.b:c-d", "x" * 128])
def test_names_that_may_be(name: str) -> None:
    assert regions.checked_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "a/b", "a b", "a,b", "a;b", "é", "a\n", "a\0", "x" * 129])
def test_names_that_may_not_be(name: str) -> None:
    with pytest.raises(InvalidArgument):
        regions.checked_name(name)


@pytest.mark.parametrize("key", ["/x", "x", "/input_simple", "/.hidden", "psm_1234"])
def test_keys_that_may_be(key: str) -> None:
    assert regions.component(key) == key.removeprefix("/")


@given(st.text(max_size=200))
@example("")
@example("/")
@example("//x")
@example("..")
@example("/...")
@example("../x")
@example("a/../b")
@example("a\0b")
@example("a\n")
def test_a_key_is_one_component_or_refused(key: str) -> None:
    try:
        name = regions.component(key)
    except InvalidArgument:
        return
    assert "/" not in name and name.strip(".") and name.isascii() and name.isprintable() and len(name) <= 128


def test_what_is_opened_is_what_was_named() -> None:
    with shared_object(100) as key:
        descriptor, found = regions.open_key(key)
        try:
            assert found.st_ino == os.stat(path_of(key)).st_ino
            assert not os.get_inheritable(descriptor)
        finally:
            os.close(descriptor)


def trap_link(path: str, key: str) -> None:
    os.symlink(path_of(key), path)


def trap_hard_link(path: str, key: str) -> None:
    os.link(path_of(key), path)


def trap_folder(path: str, key: str) -> None:
    os.mkdir(path)


def trap_pipe(path: str, key: str) -> None:
    os.mkfifo(path)


def trap_socket(path: str, key: str) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path)


def trap_nothing(path: str, key: str) -> None:
    """There is nothing."""


def trap_stranger(path: str, key: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a file of another user")
    with open(path, "xb") as file:
        file.truncate(64)
    os.chown(path, 65534, 65534)


@pytest.mark.parametrize(
    "make", [trap_link, trap_hard_link, trap_folder, trap_pipe, trap_socket, trap_nothing, trap_stranger]
)
def test_nothing_but_a_plain_file_of_ours_is_opened(make: Callable[[str, str], None]) -> None:
    with shared_object(64) as key:
        trap = f"{key}-trap"
        make(path_of(trap), key)
        before = os.listdir("/proc/self/fd")
        try:
            with pytest.raises(InvalidArgument) as caught:
                regions.measured("r", trap, 0, 1)
        finally:
            if os.path.isdir(path_of(trap)):
                os.rmdir(path_of(trap))
            elif os.path.lexists(path_of(trap)):
                os.unlink(path_of(trap))
        assert len(os.listdir("/proc/self/fd")) <= len(before), "no descriptor stays behind"
        words = caught.value.message.replace(trap, "…")
        assert words.startswith("key: there is no shared memory '…' that can be used"), "one wording for all"
        assert regions.FOLDER not in words and "Errno" not in words


def test_memory_of_ours_has_no_name() -> None:
    before = set(os.listdir(regions.FOLDER))
    made, descriptor = arena.create(1 << 20, writable=True)
    try:
        assert set(os.listdir(regions.FOLDER)) == before
        assert os.fstat(descriptor).st_nlink == 0
        told = os.readlink(f"/proc/self/fd/{descriptor}")
        for key in (told, told.split()[0], "memfd:penstock-tensors", "penstock-tensors"):
            with pytest.raises(InvalidArgument):
                regions.open_key(key)
    finally:
        os.close(descriptor)
        made.close()


@given(numbers, numbers)
@example(0, 4096)
@example(4095, 1)
@example(2**63 - 1, 2**63 - 1)
@example(2**31, 2**31)
@example(0, 0)
def test_a_region_lies_in_its_memory_or_is_refused(offset: int, byte_size: int) -> None:
    with shared_object(4096) as key:
        try:
            made = regions.measured("r", key, offset, byte_size)
        except InvalidArgument as refusal:
            assert not (offset >= 0 and byte_size >= 1 and offset + byte_size <= 4096), refusal.message
            return
    assert made.offset >= 0 and made.byte_size >= 1 and made.offset + made.byte_size <= 4096


@given(st.integers(1, 1 << 40), st.integers(0, 1 << 40), numbers, numbers)
@example(64, 0, 2**63 - 1, 2**63 - 1)
def test_a_reference_lies_in_its_region_or_is_refused(size: int, at: int, offset: int, byte_size: int) -> None:
    region = Region("r", "/k", 7, at, size)
    inside = offset >= 0 and byte_size >= 0 and offset + byte_size <= size
    try:
        made = {"region": "r", "byte_size": byte_size, "offset": offset}
        wanted = regions.reference({**parameters(region="r"), **_unsigned(made)}, "inputs[0]")
        assert wanted is not None
        begin = regions.placed(region, wanted, "inputs[0]")
    except InvalidArgument:
        assert not inside
        return
    assert inside and at <= begin and begin + byte_size <= at + size


def _unsigned(made: dict[str, Any]) -> dict[str, oip.InferParameter]:
    """As a client in any language may send them; what protobuf cannot hold at all is refused by it."""
    written = {}
    for name in ("offset", "byte_size"):
        value = made[name]
        if -(2**63) <= value < 2**63:
            written[f"shared_memory_{name}"] = oip.InferParameter(int64_param=value)
        elif 0 <= value < 2**64:
            written[f"shared_memory_{name}"] = oip.InferParameter(uint64_param=value)
        else:
            raise InvalidArgument("not a number of the protocol")
    return written


def test_a_tensor_without_shared_memory_refers_to_nothing() -> None:
    assert regions.reference({"binary_data": oip.InferParameter(bool_param=True)}, "outputs[0]") is None


def test_the_offset_is_zero_unless_said() -> None:
    assert regions.reference(parameters(region="r", byte_size=5), "inputs[0]") == Reference("r", 0, 5)


@pytest.mark.parametrize(
    "given",
    [
        {"region": "r"},
        {"byte_size": 4},
        {"offset": 4},
        {"region": 7, "byte_size": 4},
        {"region": "a/b", "byte_size": 4},
        {"region": "r", "byte_size": "4"},
        {"region": "r", "byte_size": True},
        {"region": "r", "byte_size": -4},
        {"region": "r", "byte_size": 4, "offset": -1},
        {"region": "r", "byte_size": 4, "offset": False},
    ],
)
def test_half_a_reference_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        regions.reference(parameters(**given), "inputs[3]")
    assert caught.value.message.startswith("inputs[3]")


@given(
    st.lists(
        st.builds(
            Region,
            name=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}", fullmatch=True),
            key=st.from_regex(r"/?[A-Za-z0-9_-][A-Za-z0-9_.-]{0,100}", fullmatch=True),
            inode=st.integers(0, 2**63 - 1),
            offset=st.integers(0, 2**62 - 1),
            byte_size=st.integers(0, 2**62),
        ),
        min_size=1,
        max_size=regions.MAX_PER_REQUEST,
        unique_by=lambda region: region.name,
    )
)
def test_what_is_packed_comes_out_again(made: list[Region]) -> None:
    text = regions.pack(made)
    assert text.isascii() and text.isprintable()
    assert list(regions.unpack(text).values()) == made


@given(st.text(alphabet="ab/.;,:-019é \0", max_size=60))
@example("a;/b;1;2;3")
@example("a;../b;1;2;3")
@example("a;/b;-1;2;3")
@example("a;/b;1;9223372036854775807;9223372036854775807")
def test_a_strangers_header_is_checked(text: str) -> None:
    try:
        found = regions.unpack(text)
    except InvalidArgument:
        return
    for region in found.values():
        regions.checked_name(region.name)
        regions.component(region.key)
        assert region.offset >= 0 and region.byte_size >= 0 and region.offset + region.byte_size < regions.LIMIT


def test_a_header_has_so_many_regions_and_no_more() -> None:
    region = Region("r", "/k", 1, 0, 1)
    with pytest.raises(InvalidArgument):
        regions.unpack(regions.pack([region] * (regions.MAX_PER_REQUEST + 2)))
