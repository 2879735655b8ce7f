"""One container, booted once, with the daemon installed in it once: the tests of a file share it, in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.os import container_image
from tests.os.able import cannot
from tests.os.container import Container
from tests.os.container_image import CannotError
from tests.os.container_service import FOLDER, OPERATOR, OUTSIDER, Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A machine with nothing of the daemon on it, and the line to its motors."""
    if why := container_image.missing():
        cannot(why)
    folder = tmp_path_factory.mktemp("container")
    with Service(folder) as service:
        try:
            root = container_image.root_folder()
            service.container = Container(root, container_image.wheel_folder(root), folder, service.port)
            service.container.boot()
        except CannotError as error:
            cannot(str(error))
        yield service
        service.container.close()


@pytest.fixture(scope="session")
def files_before(booted: Service) -> set[str]:
    """What was on the machine before anything was installed, but for two people."""
    for user in (OPERATOR, OUTSIDER):
        booted.container.run("useradd", "--create-home", user)
    return booted.files()


@pytest.fixture(scope="session")
def installed(booted: Service, files_before: set[str], studio: Path) -> Service:
    """The daemon as `scripts/install.sh` leaves it, and one of the two people in its group."""
    assert files_before
    booted.install()
    booted.container.run("usermod", "--append", "--groups", "mvla", OPERATOR)
    for name in ("moving.avi", "steady.onnx", "steady.toml"):
        booted.container.lay(studio / name, f"{FOLDER}/{name}")
    return booted


@pytest.fixture
def service(installed: Service) -> Service:
    """The daemon, running and disarmed."""
    installed.stand()
    return installed


@pytest.fixture
def driving(installed: Service) -> Service:
    """The daemon, driving."""
    installed.drive()
    return installed
