"""Packages of AOTInductor: for whom they are made, and what is said where none can be. Making one is in tests/e2e."""

from __future__ import annotations

import platform

import pytest

from penstock.errors import InvalidArgument, Unsupported
from services.registry.build.steps import catalogue, compile_torch
from services.registry.build.steps.compile_torch import Parameters, architecture

AVX2 = {"sse4_2", "avx", "avx2", "fma"}
AVX512 = {*AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl"}


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (AVX2, "cpu-x86_64_avx2"), (AVX512, "cpu-x86_64_avx512"), ({*AVX2, "avx512f"}, "cpu-x86_64_avx2"),
        (AVX512 - {"avx512vl"}, "cpu-x86_64_avx2"),
    ],
)  # fmt: skip
def test_the_architecture_is_this_processors(flags: set[str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(compile_torch, "_flags", lambda: frozenset(flags))
    assert architecture(Parameters()) == name
    assert architecture(Parameters("cpu-x86_64_avx2")) == "cpu-x86_64_avx2"


@pytest.mark.parametrize(("machine", "flags"), [("x86_64", {"sse4_2"}), ("aarch64", AVX512)])
def test_another_processor_is_said(machine: str, flags: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(compile_torch, "_flags", lambda: frozenset(flags))
    with pytest.raises(Unsupported, match=f"AVX2 or more, and this builder's processor is another .{machine}"):
        architecture(Parameters())


def test_another_target_is_refused_when_it_is_asked_for() -> None:
    with pytest.raises(InvalidArgument, match=r"compile-torch\.architecture: cpu-x86_64_avx512, cpu-x86_64_avx2, or"):
        catalogue.find("compile-torch").read({"architecture": "sm_90"})


def test_without_a_compiler_the_step_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    step = catalogue.find("compile-torch")
    with pytest.raises(Unsupported, match="no compiler for it is installed on this builder; install g\\+\\+"):
        step.tools(step.read({}))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names of processors are those of x86-64")
def test_the_name_is_the_one_by_which_a_worker_calls_its_own() -> None:
    torch = pytest.importorskip("torch", reason="needs penstock[build-torch]")
    kind = torch.backends.cpu.get_cpu_capability().lower()
    assert architecture(Parameters()) == f"cpu-x86_64_{kind}"
