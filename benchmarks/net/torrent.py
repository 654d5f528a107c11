"""The same job by libtorrent. usage: PYTHON torrent.py seed FILE | leech FILE FOLDER PORT

`seed` prints a port and serves until its input ends; `leech` prints the seconds from adding the torrent until the file
is complete, hashed and on the disk, synced.
"""

import os
import sys
import time
import warnings
from pathlib import Path

import libtorrent as lt  # 2.1.1; its older names, which it warns of

warnings.simplefilter("ignore", DeprecationWarning)
SETTINGS = {
    "listen_interfaces": "127.0.0.1:0",
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "allow_multiple_connections_per_ip": True,
    # As fast as it goes: TCP alone (it prefers uTP, which is slow over loopback), no obfuscation, nobody choked.
    "enable_incoming_utp": False,
    "enable_outgoing_utp": False,
    "out_enc_policy": 2,
    "in_enc_policy": 2,
    "unchoke_slots_limit": -1,
}


def info(file):
    storage = lt.file_storage()
    lt.add_files(storage, str(file))
    torrent = lt.create_torrent(storage, 262_144)
    lt.set_piece_hashes(torrent, str(file.parent))
    return lt.torrent_info(torrent.generate())


def seed(file):
    session = lt.session(SETTINGS)
    handle = session.add_torrent({"ti": info(file), "save_path": str(file.parent)})
    while not handle.status().is_seeding:
        time.sleep(0.01)
    print(session.listen_port(), flush=True)
    sys.stdin.read()


def leech(file, folder, port):
    session, wanted = lt.session(SETTINGS), info(file)
    begun = time.perf_counter()
    handle = session.add_torrent({"ti": wanted, "save_path": folder})
    handle.connect_peer(("127.0.0.1", port))
    while not handle.status().is_seeding:
        time.sleep(0.002)
    with (Path(folder) / file.name).open("rb") as came:
        os.fsync(came.fileno())
    print(time.perf_counter() - begun, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "seed":
        seed(Path(sys.argv[2]))
    else:
        leech(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
