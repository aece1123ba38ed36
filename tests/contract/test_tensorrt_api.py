"""The fake TensorRT has no name that the real bindings lack, and our logger is one that they take.

Our engine runs against the fake, so every name that it uses is one of these. Skipped where no bindings are installed.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import pytest

from penstock.compiling.builders import PACKAGES
from tests.harness import fake_tensorrt as fake

INSTALLED = [name for name in PACKAGES if importlib.util.find_spec(name) is not None]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.mark.skipif(not INSTALLED, reason="no TensorRT bindings are installed")
@pytest.mark.parametrize("package", INSTALLED)
def test_every_name_of_the_fake_is_one_of_the_real_bindings(package: str) -> None:
    real = importlib.import_module(package)
    assert real.__version__
    for made in (fake.ILogger, fake.Runtime, fake.ICudaEngine, fake.IExecutionContext):
        have = dir(getattr(real, made.__name__))
        own = {name for kind in made.__mro__[:-1] for name in vars(kind) if not name.startswith("_")}
        assert sorted(own - set(have)) == [], made.__name__
    for kind in fake.ENUMS:
        assert sorted({each.name for each in kind} - set(getattr(real, kind.__name__).__members__)) == []
    # Attributes that only instances of the fake have.
    assert hasattr(real.Runtime, "engine_host_code_allowed")
    for name in ("num_io_tensors", "num_optimization_profiles", "device_memory_size_v2"):
        assert hasattr(real.ICudaEngine, name)
    if package == "tensorrt_rtx_bindings":
        assert hasattr(real.IExecutionContext, "is_stream_capturable")


@pytest.mark.skipif(not INSTALLED, reason="no TensorRT bindings are installed")
@pytest.mark.parametrize("package", INSTALLED)
def test_our_logger_is_one_that_the_real_bindings_take(package: str) -> None:
    from services.worker.engines.tensorrt import _logger

    real: Any = importlib.import_module(package)
    logger, words = _logger(real)
    logger.log(real.ILogger.ERROR, "first")
    logger.log(real.ILogger.WARNING, "left out")
    logger.log(real.ILogger.INTERNAL_ERROR, "second")
    assert words() == "first; second"
    assert isinstance(logger, real.ILogger)
