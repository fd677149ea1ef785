"""Tars of pairs with the oddities that archives have: links, devices, files of other systems, damage."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from .odd_records import Odd


def pairs_tar(odd: Odd) -> Path:
    """Tars of pairs as macOS, GNU tar and people make them."""
    rng, members = odd.rng, []
    for number in range(odd.records or 0):
        key = f"{number:03d}" + (".v2" if odd else "")
        key = rng.choice(["", "", "./", "a/b.c/", "x" * 120 + "/"]) + key
        caption = rng.choice([b"a dog", b"", b" \n", b"\xef\xbb\xbfa dog", b"it\x92s a dog", "日本".encode()])
        jpg, txt = rng.choice([("jpg", "txt"), ("JPG", "TXT"), ("png", "txt"), ("webp", "txt"), ("avif", "txt")])
        kind, target = rng.choice([(tarfile.REGTYPE, ""), (tarfile.SYMTYPE, ""), (tarfile.LNKTYPE, "")])
        if kind != tarfile.REGTYPE:
            target = rng.choice(
                [members[0][0] if members else "nowhere", "nowhere", f"{key}.{jpg}", "../../etc/passwd"]
            )
        if rng.random() > 0.1:
            members.append((f"{key}.{jpg}", odd.make_png(number), kind if odd else tarfile.REGTYPE, target))
        if rng.random() > 0.05 or len(members) == 0:
            members.append((f"{key}.{txt}", caption, tarfile.REGTYPE, ""))
        elif members[-1][0] != f"{key}.{jpg}":
            odd.records = None if odd.records is None else odd.records - 1  # neither of its files is in the tar
        if odd:
            members.append((f"{key}.json", rng.choice([b"{}", b"{", b"null", b"[]", b'{"url": 1}']), b"0", ""))
            if not any(name.rpartition(".")[0] == key for name, *_ in members[:-1]):
                odd.records = None
        if odd:
            folder, _, base = members[-1][0].rpartition("/")
            members.append((f"{folder}/._{base}".lstrip("/"), b"\0\5\x16\7", tarfile.REGTYPE, ""))
        if odd:
            members.append((f"dir{number}", b"", rng.choice([tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]), ""))
        if rng.random() < 0.05:
            members.append(members[-1])
    if odd:
        rng.shuffle(members)
    path = odd.folder / "a.b.tar"
    with tarfile.open(path, "w", format=rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])) as tar:
        for name, data, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(data))
    if rng.random() < 0.15:
        data = bytearray(path.read_bytes())
        for _ in range(3):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        odd.records = None
    return path
