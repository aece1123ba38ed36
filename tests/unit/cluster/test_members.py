"""Whose turn it is, and what becomes of channels when certificates change."""

from __future__ import annotations

import grpc

from penstock.cluster.members import Members


async def test_a_member_that_fails_goes_to_the_end_once() -> None:
    members = Members(["a:1", "b:1", "c:1"], lambda: None, lambda channel: channel)
    first = await members.first()
    members.pass_over(first)
    members.pass_over(first)  # another call on it, which failed a little later
    assert [(await members.first()).endpoint, first.endpoint] == ["b:1", "a:1"]
    members.pass_over(await members.first())
    members.pass_over(await members.first())
    assert await members.first() is first
    await members.close()


async def test_changed_credentials_open_new_channels_and_spare_calls_on_the_old() -> None:
    now = grpc.ssl_channel_credentials()
    members = Members(["a:1", "b:1"], lambda: now, lambda channel: channel)
    old = await members.first()
    assert await members.first() is old
    with old.called():
        now = grpc.ssl_channel_credentials()
        new = await members.first()
        assert new is not old and new.endpoint == old.endpoint
        assert old.channel.get_state() is not grpc.ChannelConnectivity.SHUTDOWN
    assert await members.first() is new
    assert old.channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
    # Its turn is over already: this must not touch the new one's.
    members.pass_over(old)
    assert await members.first() is new
    await members.close()
