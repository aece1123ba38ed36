"""Why a replica may not run on a worker: the one definition that placing, keeping and explaining share. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ..snapshot import PLAIN, Replica, Wanted, Worker
from .seat import Seat, Share, reserved_on


class Kind(StrEnum):
    """What stands in the way, in the order in which it is looked for."""

    DRAINING = "draining"
    RUNNING = "running"
    ENGINE = "engine"
    DEVICES = "devices"
    SELECTOR = "selector"
    TAINT = "taint"
    ANTI_AFFINITY = "anti-affinity"
    SPREAD = "spread"
    SHUNNED = "shunned"
    MEMORY = "memory"
    EXCLUSIVE = "exclusive"
    DEVICE_MEMORY = "device-memory"
    RESERVED = "reserved"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One reason. subject: the label, taint, model, domain, device or tenant that it is about; lacking_bytes: by how
    much it does not fit."""

    kind: Kind
    subject: str = ""
    lacking_bytes: int = 0


def standing(item: Wanted, worker: Worker) -> Obstacle | None:
    """What no change of the plan can help: alike for all workers of a pool."""
    needs = item.needs
    if item.engine not in worker.engines:
        return Obstacle(Kind.ENGINE, item.engine)
    if needs.devices and sum(device.kind == needs.device_kind for device in worker.devices) < needs.devices:
        return Obstacle(Kind.DEVICES, needs.device_kind)
    for key, value in needs.selector:
        if worker.labels.get(key) != value:
            return Obstacle(Kind.SELECTOR, f"{key}={value}")
    if worker.taints and (taints := worker.taints - needs.tolerations):
        return Obstacle(Kind.TAINT, min(taints))
    return None


def obstacle(item: Wanted, seat: Seat, domains: Mapping[str, int]) -> Obstacle | None:
    """The first thing that stands in the way of one more replica there; None when it would fit."""
    if seat.worker.draining:
        return Obstacle(Kind.DRAINING)
    if item.id in seat.replicas:
        return Obstacle(Kind.RUNNING)
    return standing(item, seat.worker) or passing(item, seat, domains)


def passing(item: Wanted, seat: Seat, domains: Mapping[str, int]) -> Obstacle | None:
    """What depends on the rest of the plan. domains: replicas of this version by failure domain."""
    if (apart := company(item, seat, domains)) is not None:
        return apart
    if item.memory_bytes > seat.free:
        return Obstacle(Kind.MEMORY, "", item.memory_bytes - seat.free)
    if seat.share_of(item.needs) is None:
        return _of_devices(item, seat)
    return _of_tenants(item, seat) if item.memory_bytes > seat.free_for(item.needs.tenant) else None


def company(item: Wanted, seat: Seat, domains: Mapping[str, int]) -> Obstacle | None:
    """Who is there already, or too near, that it may not be together with."""
    needs = item.needs
    if seat.worker.id in needs.shunned:
        return Obstacle(Kind.SHUNNED)
    if seat.repelled and seat.repelled.get(item.id.name):
        others = (other for other in sorted(seat.replicas) if other.name != item.id.name)
        return Obstacle(Kind.ANTI_AFFINITY, next((other.name for other in others), ""))
    if needs.anti_affinity and (other := seat.stays_any(needs.anti_affinity - {item.id.name})):
        return Obstacle(Kind.ANTI_AFFINITY, other)
    if needs.spread_required and domains.get(seat.worker.domain):
        return Obstacle(Kind.SPREAD, seat.worker.domain)
    return None


def fitting_share(item: Wanted, seat: Seat, domains: Mapping[str, int], told: Replica | None = None) -> Share | None:
    """Devices for a replica that nothing passing stands in the way of, else None: `passing`, made quick.

    told: what it was told to reserve there already, which is not taken from it for a tenant that does not use it yet.
    """
    if item.memory_bytes > seat.free:
        return None
    if item.needs is PLAIN and not seat.repelled and seat.kept is None:
        return ()
    if item.memory_bytes > seat.free_for(item.needs.tenant) and (told is None or item.memory_bytes > told.memory_bytes):
        return None
    if company(item, seat, domains) is not None:
        return None
    return seat.share_of(item.needs, told.devices if told is not None else ())


def kept_share(item: Wanted, seat: Seat, domains: Mapping[str, int], told: Replica) -> Share | None:
    """Devices for a replica that keeps what it was told to reserve, else None.

    What runs is not stopped because it has turned out bigger than it was said to be; it only may not ask for less.
    """
    needs = item.needs
    if told.manifest_digest != item.manifest_digest or told.memory_bytes > min(item.memory_bytes, seat.free):
        return None
    if company(item, seat, domains) is not None:
        return None
    asked = dict(seat.share_on(needs, [index for index, _ in told.devices]))
    if len(asked) != needs.devices or len(told.devices) != needs.devices:
        return None
    for index, size in told.devices:
        alone = needs.exclusive and (seat.device_users[index] or size != asked[index])
        if alone or not 0 < size <= min(asked[index], seat.device_free[index]):
            return None
    kinds = {device.index: device.kind for device in seat.worker.devices}
    return told.devices if all(kinds[index] == needs.device_kind for index in asked) else None


def _of_tenants(item: Wanted, seat: Seat) -> Obstacle:
    """For whom the bytes are kept that it would need."""
    assert seat.kept is not None
    tenant = item.needs.tenant
    return Obstacle(Kind.RESERVED, seat.kept.holder(tenant), item.memory_bytes - seat.free_for(tenant))


def _of_devices(item: Wanted, seat: Seat) -> Obstacle:
    """Which device is the nearest to having room, and what it lacks."""
    needs = item.needs
    if seat.kept is not None and seat.share_of(needs, keeps=False) is not None:
        lacking = _lacking_of_kept(item, seat)
        return Obstacle(Kind.RESERVED, seat.kept.holder(needs.tenant), lacking)
    kin = [device for device in seat.worker.devices if device.kind == needs.device_kind]
    if len(kin) < needs.devices:
        return Obstacle(Kind.DEVICES, needs.device_kind)
    lacks = [
        (needs.device_bytes if needs.exclusive else reserved_on(needs, device))
        - (device.memory_bytes if needs.exclusive else seat.device_free[device.index])
        for device in kin
    ]
    # Of as many as it needs, the last to fit is what stands in the way.
    ordered = sorted(zip(lacks, kin, strict=True), key=lambda pair: (pair[0], pair[1].index))
    lack, device = next((pair for pair in ordered if pair[0] > 0), ordered[-1])
    if needs.exclusive and sum(pair[0] <= 0 for pair in ordered) >= needs.devices:
        return Obstacle(Kind.EXCLUSIVE, needs.device_kind)
    return Obstacle(Kind.DEVICE_MEMORY, f"{device.kind}{device.index}", lack)


def _lacking_of_kept(item: Wanted, seat: Seat) -> int:
    """By how many bytes what is not kept for others is too little, on the last device that it needs."""
    needs = item.needs
    lacks = sorted(
        reserved_on(needs, device) - seat.device_free_for(needs.tenant, device.index)
        for device in seat.worker.devices
        if device.kind == needs.device_kind
    )
    return max(lacks[needs.devices - 1], 1)
