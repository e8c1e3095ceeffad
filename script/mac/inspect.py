#!/usr/bin/env python3
"""Looks at a program for Macs (Mach-O, arm64): says what it is, and fails where it is not what flyci needs.

Usage: inspect.py PROGRAM ENTITLEMENTS. Python's standard library alone; runs anywhere.
"""

import plistlib
import struct
import sys
import uuid

# From mach-o/loader.h and the code signing blobs of the kernel's cs_blobs.h.
MAGIC_64 = 0xFEEDFACF
CPU_ARM64 = 0x0100000C
EXECUTABLE = 2
DYLIBS = {0xC, 0x80000018, 0x8000001F}
UUID, SIGNATURE, BUILD_VERSION = 0x1B, 0x1D, 0x32
PLATFORM_MACOS = 1
FLAG_PIE, FLAG_NO_UNDEFINED, FLAG_TWO_LEVEL = 0x200000, 0x1, 0x80
SUPER_BLOB, CODE_DIRECTORY, ENTITLEMENTS = 0xFADE0CC0, 0xFADE0C02, 0xFADE7171
AD_HOC = 0x2

# What a Mac of the oldest macOS brings along, and we mean to use.
OLDEST_MACOS = (14, 0)
NEEDED = {"Virtualization", "Foundation", "libobjc.A.dylib", "libSystem.B.dylib"}
ALLOWED = NEEDED | {"CoreFoundation", "CoreServices", "IOKit", "Security", "SystemConfiguration", "libiconv.2.dylib"}


def commands(data):
    """Each load command: its kind and its bytes."""
    magic, cpu, _subtype, kind, count, _size, flags, _ = struct.unpack_from("<8I", data)
    expect(magic == MAGIC_64 and cpu == CPU_ARM64 and kind == EXECUTABLE, "is an arm64 Mach-O program")
    wanted = FLAG_PIE | FLAG_NO_UNDEFINED | FLAG_TWO_LEVEL
    expect(flags & wanted == wanted, "is position independent, with two-level names, none undefined")
    at = 32
    for _ in range(count):
        command, size = struct.unpack_from("<2I", data, at)
        yield command, data[at : at + size]
        at += size


def libraries(found):
    """The names of the libraries, shortened to a framework's or a file's."""
    for kind, body in found:
        if kind in DYLIBS:
            start = struct.unpack_from("<I", body, 8)[0]
            path = body[start:].split(b"\0")[0].decode()
            expect(path.startswith(("/usr/lib/", "/System/Library/Frameworks/")), f"{path} is part of macOS")
            yield path.rsplit("/", 1)[1]


def one(found, kind, what):
    bodies = [body for command, body in found if command == kind]
    expect(len(bodies) == 1, f"has {what}")
    return bodies[0]


def blobs(signature):
    """The parts of a signature, by their magic; all big-endian."""
    magic, _size, count = struct.unpack_from(">3I", signature)
    expect(magic == SUPER_BLOB, "the signature is one that macOS reads")
    for index in range(count):
        at = struct.unpack_from(">2I", signature, 12 + 8 * index)[1]
        magic, size = struct.unpack_from(">2I", signature, at)
        yield magic, signature[at : at + size]


def check_signature(data, found, wanted):
    at, size = struct.unpack_from("<2I", one(found, SIGNATURE, "a signature (LC_CODE_SIGNATURE)"), 8)
    parts = dict(blobs(data[at : at + size]))
    flags = struct.unpack_from(">I", parts[CODE_DIRECTORY], 12)[0]
    expect(flags & AD_HOC == AD_HOC, "is signed ad hoc")
    expect(ENTITLEMENTS in parts, "is signed with entitlements")
    expect(plistlib.loads(parts[ENTITLEMENTS][8:]) == wanted, f"has the entitlements {', '.join(wanted)}, and no other")


def expect(holds, what):
    if not holds:
        sys.exit(f"inspect: NOT SO: {what}")
    print(f"inspect: {what}")


def main(program, entitlements):
    data = open(program, "rb").read()
    wanted = plistlib.load(open(entitlements, "rb"))
    found = list(commands(data))
    name = uuid.UUID(bytes=bytes(one(found, UUID, "an LC_UUID: macOS keys Local Network permission by it")[8:24]))
    expect(name.int != 0, f"its LC_UUID is {name}")
    platform, oldest = struct.unpack_from("<2I", one(found, BUILD_VERSION, "a build version"), 8)
    version = (oldest >> 16, oldest >> 8 & 0xFF)
    expect((platform, version) == (PLATFORM_MACOS, OLDEST_MACOS), f"runs on macOS {version[0]}.{version[1]} and later")
    linked = set(libraries(found))
    expect(NEEDED <= linked <= ALLOWED, f"links {', '.join(sorted(linked))}")
    check_signature(data, found, wanted)


main(*sys.argv[1:])
