from __future__ import annotations

import ipaddress

import pytest

from mdi.cluster.interfaces import (
    MAX_ADDRESSES,
    Interface,
    advertised_addresses,
    choose_interfaces,
    multicast_sockets,
    read_interfaces,
)
from mdi.errors import UserError

LO = Interface("lo", ("127.0.0.1", "::1"), is_loopback=True)
ETH = Interface("eth0", ("192.168.1.5", "fd00::5", "fe80::5"))
WIFI = Interface("wlan0", ("192.168.2.5",))
DOCKER = Interface("docker0", ("172.17.0.1",))
VPN = Interface("wg0", ("10.9.0.1",), is_point_to_point=True)


def test_real_networks_come_before_virtual_ones_before_loopback() -> None:
    assert choose_interfaces([LO, DOCKER, ETH, VPN, WIFI]) == (ETH, WIFI)
    assert choose_interfaces([LO, DOCKER, VPN]) == (DOCKER,)
    assert choose_interfaces([LO, VPN]) == (LO,)
    assert choose_interfaces([]) == ()


def test_interfaces_can_be_named() -> None:
    assert choose_interfaces([LO, ETH, WIFI], ["lo"]) == (LO,)
    assert choose_interfaces([LO, ETH, WIFI], ["192.168.2.5", "eth0"]) == (ETH, WIFI)
    with pytest.raises(UserError, match="eth7") as refused:
        choose_interfaces([LO, ETH], ["eth7"])
    assert refused.value.hint == "those that are up: lo, eth0"


def test_addresses_are_advertised_best_first_and_bounded() -> None:
    assert advertised_addresses([ETH, WIFI]) == ("192.168.1.5", "192.168.2.5", "fd00::5")
    assert advertised_addresses([Interface("eth0", ("fe80::1",))]) == ("fe80::1",)
    assert advertised_addresses([]) == ()
    assert len(advertised_addresses([Interface("eth0", tuple(f"10.0.0.{i}" for i in range(1, 99)))])) == MAX_ADDRESSES


def test_one_socket_for_each_interface_and_family() -> None:
    assert multicast_sockets([LO]) == ["127.0.0.1"]
    assert multicast_sockets([Interface("x", ("10.0.0.1", "10.0.0.2"))]) == ["10.0.0.1"]


def test_this_device_has_interfaces() -> None:
    found = read_interfaces()
    assert found
    assert all(ipaddress.ip_address(address) for interface in found for address in interface.addresses)
    assert choose_interfaces(found)
