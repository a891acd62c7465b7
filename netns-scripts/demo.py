#!/usr/bin/env python3
"""The two programs that `lab demo` runs in its hosts: they answer and send single UDP packets.

  demo.py echo PORT…                    answers every packet on these ports with its own words, for ever
  demo.py send PORT ADDRESS:PORT…       from one socket, a packet to each; prints who answered
"""

import select
import socket
import sys


def bound(port):
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("0.0.0.0", port))
    return udp


def echo(ports):
    sockets = [bound(port) for port in ports]
    print("ready", flush=True)
    while True:
        for udp in select.select(sockets, [], [])[0]:
            data, sender = udp.recvfrom(2048)
            udp.sendto(data, sender)


def send(port, destinations):
    udp = bound(port)
    udp.settimeout(3)
    for number, destination in enumerate(destinations, 1):
        address, _, remote = destination.rpartition(":")
        udp.sendto(b"hello %d" % number, (address, int(remote)))
        try:
            udp.recvfrom(2048)
        except socket.timeout:
            sys.exit(f"no answer from {destination} within 3 s")


if __name__ == "__main__":
    if sys.argv[1] == "echo":
        echo([int(port) for port in sys.argv[2:]])
    else:
        send(int(sys.argv[2]), sys.argv[3:])
