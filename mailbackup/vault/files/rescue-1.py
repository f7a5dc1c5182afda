#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Get mail and files back out of a mailbackup vault, without mailbackup.

You need this file, Python 3.9 or newer, the programs age, zstd and openssl (apt-get install age zstd openssl), a copy of
the vault in a directory, and your recovery kit. Look first, then restore into an empty directory:

    python3 rescue-1.py --vault DIR --identity KIT --list                     which snapshots are there
    python3 rescue-1.py --vault DIR --identity KIT --list --at 12             what is in snapshot 12
    python3 rescue-1.py --vault DIR --identity KIT --to OUT                   the newest, to OUT/mail and OUT/files
    python3 rescue-1.py --vault DIR --identity KIT --to OUT --at 12 --mailbox bob@example.org

As root, --owners also gives everything back to its owner. The vault is never changed, and nothing in OUT is overwritten.
Exit status: 0 all is well; 1 the target cannot be written; 2 usage; 4 damage (the rest is restored); 7 the key does not fit.

The format in ten lines (FORMAT-1.md in the vault is the whole of it):
  ledger/../<seq>.json    the chain: a line of JSON, a line with its Ed25519 signature; each names the hash of the one before
  ... entry "trust"       signed by the admin key of your kit: which writers may sign the others
  ... entry "packs"       new packs and the hashes of their footers; entry "snapshot": the same, and a snapshot object
  keys/<epoch>-<n>.age    the secret key of an epoch: your kit opens it, and it opens everything else
  packs/xx/<id>           blocks, then a footer: length and SHA-256 of each block, how many there are, "MBPACK1" and a newline
  a block                 age(zstd(blob, blob, ...)); by hand: age -d -i epoch block | zstd -d
  a reference             [row of "blocks", start, length, SHA-256 of the blob]; that row: [pack, number, offset, length]
  snapshots/<seq>-x.age   sealed JSON: the directories, and the table of the mailboxes
  a mailbox               files (a listing), and folders: lists of facts (what never changes) beside flags (where, and ":2,S")
  a listing               entries: name, type, owner, time, references to the content
"""

import argparse
import base64
import collections
import concurrent.futures
import contextlib
import errno
import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile

MIB = 1 << 20  # the limits are those of section 12
PLAIN_MAX, SEALED_MAX, RECORD_MAX, LIST_MAX, KEY_MAX = 16 * MIB, 17 * MIB, 16 * MIB, 1024 * MIB, MIB
CACHE_MAX, AHEAD, WORKERS = 256 * MIB, 8, 4  # opened blocks that are kept; opened before they are needed; at one time
N, ID, HASH = "[0-9]{10}", "[0-9a-f]{32}", "[0-9a-f]{64}"
KEY = re.compile(
    rf"vault\.json|FORMAT-1\.md|rescue-1\.py|keys/{N}-{N}\.age|packs/([0-9a-f]{{2}})/\1[0-9a-f]{{30}}"
    rf"|snapshots/{N}-[0-9a-f]{{16}}\.age|lists/{N}-[0-9a-f]{{16}}\.zst|ledger/{N}/{N}\.json"
)
ANCHORS = {"vault": ID, "admin-public": HASH, "head": f"[0-9]{{1,10}} +{HASH}"}
SPECIAL = {"p": "FIFO", "c": "character device", "b": "block device"}
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) and "TMPDIR" not in os.environ else None  # for secrets: no disk
UNZSTD = ["zstd", "-d", "-q", "-c"]
MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError, struct.error)
FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EPIPE, errno.EIO)  # no use in trying the next file


class Damage(Exception):
    """Something is missing, damaged or not as the format says; everything else can still be restored."""


# ---------------------------------------------------------------- small helpers


def show(name):
    """A name as text that is safe to print: no control characters, no stray bytes."""
    text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def warn(text):
    print(f"rescue: {text}", file=sys.stderr, flush=True)


def stop(status, text):
    warn(text)
    sys.exit(status)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def parse(data, needs_format=True):
    """The JSON object of a record; ValueError if it is anything else, has floats, or is of another format."""
    value = json.loads(data.decode("utf-8"), parse_float=whole, parse_constant=whole)
    if not isinstance(value, dict) or value.get("format", None if needs_format else 1) != 1:
        raise ValueError("not an object of format 1")
    return value


def name_of(value):
    """The bytes of a name: a string, or {"b64": ...}."""
    return value.encode("utf-8") if isinstance(value, str) else base64.b64decode(value["b64"], validate=True)


def whole(number):
    if type(number) is not int or not 0 <= number < 1 << 53:
        raise ValueError("a number is not between 0 and 2^53")
    return number


def safe(path):
    """The path itself if it stays inside its tree, else Damage."""
    if b"\0" in path or not {b"", b".", b".."}.isdisjoint(path.split(b"/")):
        raise Damage("refused: its name is unsafe (absolute, empty, NUL, '.' or '..')")
    return path


def short(v, path):
    """A path as seen from the target."""
    return path[len(v["to"]) + 1 :]


@contextlib.contextmanager
def attempt(v, what):
    """Note `what` as lost if the body fails in a way that leaves the rest restorable."""
    try:
        yield
    except (Damage, OSError, *MALFORMED) as problem:
        if isinstance(problem, OSError) and problem.errno in FATAL:
            raise
        why = getattr(problem, "strerror", None) or show(problem)
        v["lost"].append(f"{show(what)}: {why if isinstance(problem, (Damage, OSError)) else f'malformed record ({why})'}")


def pipeline(v, commands, data, most):
    """Feed data to the first command; return (output of the last, did all succeed, the first line of complaint).

    Never takes more than `most` bytes: then everything is killed and the output is empty.
    """
    running = []
    with tempfile.TemporaryFile(dir=v["tmp"]) as source, tempfile.TemporaryFile(dir=v["tmp"]) as complaint:
        source.write(data)
        source.seek(0)
        try:
            for command in commands:
                feed = running[-1].stdout if running else source
                running.append(subprocess.Popen(command, stdin=feed, stdout=subprocess.PIPE, stderr=complaint))
                feed.close()
            with running[-1].stdout as result:
                out = result.read(most + 1)
            if len(out) > most:
                return b"", False, f"it holds more than the {most} bytes that the format allows"
            statuses = [process.wait() for process in running]
        finally:
            for process in running:
                process.kill()
                process.wait()
        complaint.seek(0)
        return out, not any(statuses), show(complaint.read(1000).split(b"\n")[0])


def load(v, key, most, start=0, digest=None):
    """At most `most` bytes of an object, from `start` on. Damage if they cannot be read or do not have the signed hash."""
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise Damage(f"{show(key)[:80]} is not the key of an object")
    try:
        with open(os.open(os.path.join(v["vault"], key), os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Damage(f"{key} is not a plain file")
            file.seek(start)
            data = file.read(min(most, status.st_size))
    except OSError as problem:
        raise Damage(f"{key} cannot be read: {problem.strerror}") from None
    if digest is not None and sha256(data) != digest:
        raise Damage(f"{key} is damaged: its hash is not the signed one")
    return data


def write_secret(v, name, data):
    """A file that only we can read, in our private directory."""
    path = os.path.join(v["tmp"], name)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    return path


# ---------------------------------------------------------------- the kit and the ledger: whom to believe


def read_kit(v, path):
    """Text of the kit; v["kit"] becomes the identity file for age. age opens a kit with a passphrase, and asks for it."""
    try:
        with open(path, "rb") as file:
            data = file.read(KEY_MAX)
    except OSError as problem:
        stop(2, f"cannot read the identity {path}: {problem.strerror}")
    v["kit"] = os.path.abspath(path)
    if data.lstrip().startswith((b"-----BEGIN AGE ENCRYPTED FILE-----", b"age-encryption.org/")):
        opened = subprocess.run(["age", "-d", v["kit"]], stdout=subprocess.PIPE, check=False)
        if opened.returncode:
            stop(7, "the kit could not be opened (wrong passphrase?)")
        data = opened.stdout
        lines = [line for line in data.splitlines() if not line.startswith(b"#")]  # the admin's secret is not needed
        v["kit"] = write_secret(v, "kit", b"\n".join(lines) + b"\n")
    return data.decode("utf-8", "replace")


def find_anchors(v, args, text):
    """Vault id, admin key and pinned entries, from the command line and the kit; not from the vault unless told so."""
    for kind, option in (("vault", args.vault_id), ("admin-public", args.admin), ("head", args.head)):
        text += f"\n# {kind}: {option.replace(':', ' ')}" if option else ""
    found = {kind: set(re.findall(rf"^#[ \t]*{kind}:[ \t]*(.*?)\s*$", text, re.M)) for kind in ANCHORS}
    for kind, values in found.items():
        if not all(re.fullmatch(ANCHORS[kind], value) for value in values) or (kind != "head" and len(values) > 1):
            stop(2, f"kit and options do not give one proper '{kind}', but: {show(', '.join(sorted(values)))}")
    if not found["admin-public"] and not args.trust_store:
        stop(2, "the identity has no line '# admin-public:'. Give --admin HEX (your printed kit shows it),\n"
                "or --trust-store to believe what the vault says of itself")  # fmt: skip
    about = {}
    with contextlib.suppress(Damage, *MALFORMED):
        about = parse(load(v, "vault.json", RECORD_MAX))
    for kind, told in (("vault", str(about.get("vault"))), ("admin-public", str(about.get("admin")))):
        if not found[kind]:
            warn(f"WARNING: no '{kind}' was given; believing vault.json, which anyone who can write there can forge: {show(told)}")
            found[kind] = {told} if re.fullmatch(ANCHORS[kind], told) else set()
        if not found[kind] or (about and told not in found[kind]):
            stop(4, f"refused: this is not the vault that was asked for: '{kind}' in vault.json is {show(told)}")
    v["id"], v["admin"] = found["vault"].pop(), found["admin-public"].pop()
    v["pins"] = sorted((int(pin.split()[0]), pin.split()[1]) for pin in found["head"])


def ledger_key(seq):
    return f"ledger/{seq // 256:010}/{seq:010}.json"


def split_entry(data):
    """An entry of the ledger in its parts; ValueError if it is not two lines."""
    line, signature, end = data.split(b"\n")
    if end:
        raise ValueError("not two lines")
    return {"data": data, "entry": parse(line), "line": line, "sig": base64.b64decode(signature, validate=True)}


def judge(v, item, seq, prev):
    """Damage if this entry cannot stand here, or its signature does not fit. prev = () where the one before is unknown."""
    entry = item["entry"]
    if entry["type"] not in ("trust", "packs", "snapshot"):
        raise Damage(f"its type {show(entry['type'])} is unknown")
    if entry["vault"] != v["id"] or entry["seq"] != seq:
        raise Damage("it belongs to another vault or another place")
    if prev != () and entry["prev"] != prev:
        raise Damage("the chain is broken: it was not written after the entry that is before it here")
    if entry["signer"] not in ({v["admin"]} if entry["type"] == "trust" else v["writers"]):
        raise Damage("its signer is not trusted")
    if seq % 256 == 0 and entry.get("trust") != v["trust"]:
        raise Damage("the trust entries that it repeats are not those of the chain")
    der = bytes.fromhex("302a300506032b6570032100" + entry["signer"])  # the fixed head of an Ed25519 public key
    pem = b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(der) + b"\n-----END PUBLIC KEY-----\n"
    for name, data in (("line", item["line"]), ("sig", item["sig"]), ("key.pem", pem)):
        with open(os.path.join(v["tmp"], name), "wb") as file:
            file.write(data)
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "key.pem", "-rawin", "-in", "line", "-sigfile", "sig"]
    if subprocess.run(command, cwd=v["tmp"], capture_output=True, check=False).returncode != 0:
        raise Damage("its signature is wrong")


def learn(v, item):
    """Take over what an entry says."""
    entry = item["entry"]
    for pack in entry.get("packs", []):
        v["packs"].setdefault(pack["id"], pack)
    for epoch in entry.get("epochs", []) + entry.get("rewrapped", []):
        v["keys"].setdefault(whole(epoch["epoch"]), {})[epoch["key"]] = epoch["sha256"]
    if entry["type"] == "snapshot":
        v["snapshots"][entry["seq"]] = {**entry["snapshot"], "time": entry["time"], "outcome": entry["outcome"]}
    if entry["type"] == "trust":
        v["writers"] |= {grant["key"] for grant in entry.get("grant", []) if grant["role"] == "writer"}
        v["writers"] -= {revoke["key"] for revoke in entry.get("revoke", []) if revoke["role"] == "writer"}
        v["texts"].update(entry.get("files", {}))
        v["trust"].append(item["data"].decode())


def begin_at_page(v, entry, first):
    """The older part of the ledger is not here: the first entry of a page repeats the trust entries and lists what is live."""
    warn(f"the ledger before entry {first} is not here; starting from the trust entries that it repeats")
    last = 0
    for text in entry["trust"]:
        older = split_entry(text.encode("utf-8"))
        judge(v, older, older["entry"]["seq"], () if last else None)
        if older["entry"]["type"] != "trust" or not last < older["entry"]["seq"] < first:
            raise Damage("what it repeats are not the trust entries before it")
        learn(v, older)
        last = older["entry"]["seq"]
    live = entry["lists"]["live"]
    text, fine, _ = pipeline(v, [UNZSTD], load(v, live["key"], LIST_MAX, digest=live["sha256"]), LIST_MAX)
    listing = parse(text, needs_format=False) if fine else {}
    if [listing.get(member) for member in ("vault", "seq", "kind")] != [v["id"], first, "live"]:
        raise Damage(f"{live['key']} is malformed")
    learn(v, {"entry": {"type": "packs", "packs": listing["packs"], "epochs": listing["epochs"]}})


def ledger_range(v):
    """(first entry to check, last entry): all of them, or where entry 1 is not here, from the lowest page that is whole."""
    numbers = set()
    for page, _, files in os.walk(os.path.join(v["vault"], "ledger")):
        for key in (f"ledger/{os.path.basename(page)}/{file}" for file in files):
            if KEY.fullmatch(key) and key == ledger_key(int(key[-15:-5])):
                numbers.add(int(key[-15:-5]))
            else:
                warn(f"{show(key)} is not an object of a vault; ignored")
    if not numbers:
        stop(4, "there is no ledger here: is this a vault, and all of it?")
    last = lowest = max(numbers)
    while lowest - 1 in numbers:
        lowest -= 1
    first = 1 if lowest == 1 else -(-lowest // 256) * 256
    if first > last or (lowest > 1 and 1 in numbers):
        stop(4, f"ledger entry {lowest - 1} is missing. Nothing is restored; get it from another copy of the vault")
    return first, last


def check_ledger(v):
    """Walk the chain: every entry, signature and pinned hash must be right, or nothing is restored."""
    first, last = ledger_range(v)
    prev, hashes = (None if first == 1 else ()), {}
    for seq in range(first, last + 1):
        try:
            item = split_entry(load(v, ledger_key(seq), RECORD_MAX))
            if seq == first != 1:
                begin_at_page(v, item["entry"], first)
            judge(v, item, seq, prev)
            learn(v, item)
        except (Damage, *MALFORMED) as problem:
            stop(4, f"ledger entry {seq} is refused: {show(problem)}. Nothing is restored; try another copy of the vault")
        hashes[seq] = prev = sha256(item["data"])
    for seq, digest in v["pins"]:
        if seq > last:
            stop(4, f"refused: the ledger ends at {last}, but entry {seq} has been seen: this copy is old or was cut")
        with contextlib.suppress(Damage):
            hashes[seq] = hashes.get(seq) or sha256(load(v, ledger_key(seq), RECORD_MAX))
        if hashes.get(seq) != digest:
            stop(4, f"refused: ledger entry {seq} is not the one that has been seen: this vault was replaced or forged")
    warn(f"ledger: entries {first} to {last} are genuine; the last is of {show(item['entry']['time'])}, hash {prev}")


def check_texts(v):
    """Warn where vault.json, the format text or this script are not those that were signed."""
    for key in ("vault.json", "FORMAT-1.md", "rescue-1.py"):
        try:
            load(v, key, RECORD_MAX, digest=v["texts"].get(key, "none"))
        except Damage as problem:
            warn(f"warning (restoring goes on): {problem}")
    with open(os.path.abspath(__file__), "rb") as file:
        if sha256(file.read()) != v["texts"].get("rescue-1.py"):
            warn("warning: the script that you run is not the one that was signed for this vault")


# ---------------------------------------------------------------- opening what is sealed


def epoch_identity(v, epoch):
    """Identity file of an epoch, opened with the kit on first use. Damage if that is impossible."""
    if epoch not in v["identities"]:
        found = Damage(f"the ledger names no key of epoch {show(epoch)}")
        for key, digest in v["keys"].get(epoch, {}).items():
            try:
                sealed = load(v, key, KEY_MAX, digest=digest)
                text, _, complaint = pipeline(v, [["age", "-d", "-i", v["kit"]]], sealed, KEY_MAX)
                line = re.search(rb"^AGE-SECRET-KEY-1\S+", text, re.M)
                if line:
                    v["no_key"], found = False, write_secret(v, f"epoch-{epoch}", line[0] + b"\n")
                    break
                found = Damage(f"your identity does not open {key} ({complaint})")  # it is as it was signed
                v["no_key"] = True
            except Damage as problem:
                found = problem
        v["identities"][epoch] = found
    if isinstance(v["identities"][epoch], Damage):
        raise v["identities"][epoch]
    return v["identities"][epoch]


def footer(v, pack):
    """[(offset, length, hash), ...] of the blocks of a pack, checked against the ledger; some hundred are remembered."""
    rows, known = v["footers"].get(pack), v["packs"][pack]
    if rows is None:
        tail = 36 * whole(known["blocks"]) + 12
        data = load(v, f"packs/{pack[:2]}/{pack}", tail, whole(known["size"] - tail), known["footer"])
        rows, offset = [], 0
        for length, digest in struct.iter_unpack(">I32s", data[:-12]):
            rows.append((offset, length, digest.hex()))
            offset += length
        if data[-12:] != struct.pack(">I", len(rows)) + b"MBPACK1\n" or offset + tail != known["size"]:
            raise Damage(f"packs/{pack[:2]}/{pack}: its footer is malformed")
        if len(v["footers"]) > 500:
            v["footers"].clear()
        v["footers"][pack] = rows
    return rows


def open_block(v, block, identity):
    """(plaintext, or what could be opened of it; what is wrong, or None). Runs in a worker."""
    pack, number, offset, length = block
    key, rows, trouble = f"packs/{pack[:2]}/{pack}", None, None
    try:
        rows = footer(v, pack)
    except Damage as problem:  # the block itself may still be whole, and each blob is checked by its own hash
        trouble = str(problem)
    if rows and rows[number][:2] != (offset, length):
        return b"", f"{key}: block {number} does not lie where a listing says"
    try:
        sealed = load(v, key, length, start=offset)
    except Damage as problem:
        return b"", str(problem)
    if rows and sha256(sealed) != rows[number][2]:
        trouble = f"{key}: block {number} is damaged"
    plain, fine, complaint = pipeline(v, [["age", "-d", "-i", identity], UNZSTD], sealed, PLAIN_MAX)
    return plain, trouble if fine or trouble else f"{key}: block {number} cannot be opened: {complaint}"


def fetch(v, block):
    """A future of open_block: found among the blocks opened lately, or begun."""
    pack, number, offset, length = block
    if (pack, number) not in v["cache"]:
        if pack not in v["packs"] or not re.fullmatch(ID, pack):
            raise Damage(f"the ledger knows no pack {show(pack)[:40]}")
        if whole(length) > SEALED_MAX or whole(number) >= v["packs"][pack]["blocks"]:
            raise Damage(f"packs/{pack[:2]}/{pack}: block {number} does not exist or is too large")
        identity = epoch_identity(v, v["packs"][pack]["epoch"])
        v["cache"][pack, number] = v["pool"].submit(open_block, v, (pack, number, whole(offset), length), identity)
        while len(v["cache"]) > 64 or sum(len(job.result()[0]) for job in v["cache"].values() if job.done()) > CACHE_MAX:
            v["cache"].popitem(last=False)
    v["cache"].move_to_end((pack, number))
    return v["cache"][pack, number]


def blob(v, record, ref, coming=()):
    """The bytes of a reference, their hash checked. `coming` are the blocks wanted next: they are opened meanwhile."""
    row, start, length, digest = ref
    job = fetch(v, record["blocks"][whole(row)])
    for block in coming:
        with contextlib.suppress(Damage, *MALFORMED):
            fetch(v, block)
    plain, trouble = job.result()
    if trouble:
        v["damage"][trouble] = True
    data = plain[whole(start) : start + whole(length)]
    if len(data) != length or sha256(data) != digest:
        raise Damage(trouble or "its content is not what the listing names (wrong hash)")
    return data


def read_record(v, outer, ref, kind):
    """A record (JSON in a blob) of that kind, to which `outer` refers."""
    record = parse(blob(v, outer, ref), needs_format=False)
    if record["kind"] != kind:
        raise Damage(f"a record is of kind {show(record['kind'])}, not {kind}")
    return record


def read_snapshot(v, seq):
    known = v["snapshots"][seq]
    sealed = load(v, known["key"], SEALED_MAX, digest=known["sha256"])
    unseal = [["age", "-d", "-i", epoch_identity(v, known["epoch"])], UNZSTD]
    plain, fine, complaint = pipeline(v, unseal, sealed, RECORD_MAX)
    if not fine:
        raise Damage(f"{known['key']} cannot be opened: {complaint}")
    snapshot = parse(plain)
    if snapshot["vault"] != v["id"] or snapshot["seq"] != seq:
        raise Damage(f"{known['key']} is of another vault or another entry")
    return snapshot


# ---------------------------------------------------------------- writing below the target


def make_dirs(v, path):
    """Make a directory and those above it, up to the target; never go through anything that is not a directory."""
    if path not in v["made"]:
        make_dirs(v, os.path.dirname(path))
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            raise Damage("something that is not a directory is in its way") from None
        v["made"].add(path)


def meta_of(record, entry):
    """(mode, uid, user, gid, group, time in ns, xattrs) of an entry, checked."""
    mode, uid, user, gid, group = record["owners"][whole(entry.get("owner", 0))]
    seconds, nanoseconds = entry.get("mtime", [0, 0])
    xattrs = {name: base64.b64decode(value, validate=True) for name, value in entry.get("xattrs", {}).items()}
    return whole(mode) & 0o7777, whole(uid), user, whole(gid), group, int(seconds) * 10**9 + whole(nanoseconds), xattrs


def owner_of(meta):
    """uid and gid: by name where this machine knows the name, else by number."""
    _, uid, user, gid, group = meta[:5]
    with contextlib.suppress(KeyError, TypeError):
        uid = pwd.getpwnam(user).pw_uid
    with contextlib.suppress(KeyError, TypeError):
        gid = grp.getgrnam(group).gr_gid
    return uid, gid


def apply_meta(v, fd, meta):
    """Owner, xattrs, mode and time of an open file or directory, in the order in which none spoils another."""
    mode, time, xattrs = meta[0], meta[5], meta[6]
    if v["owners"]:
        os.fchown(fd, *owner_of(meta))
    elif stat.S_ISREG(os.fstat(fd).st_mode):
        mode &= 0o1777  # no set-uid program of someone else's
    for name, value in xattrs.items():
        with contextlib.suppress(OSError):  # best effort
            if v["owners"] or name.startswith(("user.", "system.posix_acl_")):
                os.setxattr(fd, name, value)
    os.fchmod(fd, mode)
    os.utime(fd, ns=(time, time))


def put_file(v, record, tree, path, entry, coming):
    """One file: written beside the rest, each blob checked, then renamed into its place. Further names become hard links."""
    refs, meta, twin = entry.get("refs", []), meta_of(record, entry), None
    if sum(whole(ref[2]) for ref in refs) != entry.get("size", 0):
        raise Damage("its size is not that of its content")
    make_dirs(v, os.path.dirname(path))
    if os.path.lexists(path):
        raise Damage("something of this name is there already")
    if "hard" in entry:  # only among names that we wrote ourselves, of the same content
        twin = (tree, name_of(entry["hard"]), sha256(repr([ref[3] for ref in refs]).encode()))
        with contextlib.suppress(OSError, KeyError):  # without hard links in this file system: a copy
            return os.link(v["twins"][twin], path, follow_symlinks=False)
    draft = os.path.join(v["drafts"], b"draft")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        try:
            for ref in refs:
                file.write(blob(v, record, ref, coming(ref)))
            file.flush()
            apply_meta(v, file.fileno(), meta)
            os.rename(draft, path)
        except BaseException:
            os.unlink(draft)
            raise
    if twin:
        v["twins"][twin] = path
    return None


def put(v, record, tree, path, entry, coming):
    """Restore one entry; links, and what directories look like, wait for finish()."""
    kind = entry.get("type", "f")
    if kind == "f":
        put_file(v, record, tree, path, entry, coming)
    elif kind == "d":
        make_dirs(v, path)
        v["late_dirs"][path] = meta_of(record, entry)
    elif kind == "l":
        make_dirs(v, os.path.dirname(path))
        v["late_links"][path] = (name_of(entry["target"]), meta_of(record, entry))
    elif kind in SPECIAL:
        print(f"not made: {show(short(v, path))}: {SPECIAL[kind]} {entry.get('device', '')}")
    elif kind == "m":
        print(f"{show(short(v, path))} is the mailbox {show(name_of(entry['target']))}: look below mail/")
    else:
        raise Damage(f"its type {show(kind)} is unknown")


def put_all(v, record, base, pairs):
    """Restore the (path below base, entry) pairs of a segment, with the next blocks opened ahead; returns how many."""
    order = {}
    for _, entry in pairs:
        with contextlib.suppress(*MALFORMED):
            order.update({ref[0]: None for ref in entry.get("refs", []) if record["blocks"][whole(ref[0])]})
    rows, before = list(order), len(v["lost"])
    place = {row: number for number, row in enumerate(rows)}

    def coming(ref):
        return [record["blocks"][row] for row in rows[place[ref[0]] + 1 :][:AHEAD]]

    for path, entry in pairs:
        with attempt(v, short(v, base) + b"/" + path):
            put(v, record, base, base if path == b"." else os.path.join(base, safe(path)), entry, coming)
    return len(pairs) - (len(v["lost"]) - before)


def finish(v):
    """Symbolic links when no file is written any more; then modes and times of directories, the deepest first."""
    for path, (target, meta) in v["late_links"].items():
        with attempt(v, short(v, path)):
            os.symlink(target, path)
            os.utime(path, ns=(meta[5], meta[5]), follow_symlinks=False)
            if v["owners"]:
                os.lchown(path, *owner_of(meta))
    for path in sorted(v["late_dirs"], key=lambda path: -path.count(b"/")):
        with attempt(v, short(v, path)), contextlib.ExitStack() as stack:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            stack.callback(os.close, fd)
            apply_meta(v, fd, v["late_dirs"][path])


# ---------------------------------------------------------------- mailboxes, directories, snapshots


def mailbox_table(v, root):
    """All mailboxes of a snapshot, each with the name of its directory below mail/."""
    rows = []
    for segment in root["mailboxes"]:
        with attempt(v, f"a part of the table of mailboxes, from {segment.get('first')}"):
            record = read_record(v, root, segment["ref"], "mailboxes")
            for row in record["mailboxes"]:
                names = {"key": name_of(row["key"]), "address": name_of(row["address"] or "")}
                rows.append({**row, **names, "record": record})
    shared = collections.Counter(row["address"] for row in rows)
    for row in rows:
        name = row["address"] if shared[row["address"]] == 1 else row["address"] + b"~" + row["key"]
        name = name.replace(b"/", b"%2F").replace(b"\0", b"%00")
        row["dir"] = b"mailbox-" + sha256(row["key"]).encode()[:32] if name in (b"", b".", b"..") or len(name) > 200 else name
    return rows


def read_flags(v, tree, ref, count, what):
    """Flags of a segment, as bytes. If they are lost, the messages are not: they go to cur, unread."""
    with attempt(v, what):
        flags = [flag if flag is None else name_of(flag) for flag in read_record(v, tree, ref, "flags")["flags"]]
        if len(flags) == count:
            return flags
        raise Damage("there are not as many as messages")
    return [b"c:2,"] * count


def restore_folder(v, tree, folder, base):
    """The messages of a mail folder; returns how many."""
    where, done = name_of(folder["name"]), 0
    label = os.path.join(short(v, base), where)
    for segment in folder["segments"]:
        with attempt(v, label + f": {segment.get('count')} messages".encode()):
            facts, pairs = read_record(v, tree, segment["facts"], "facts"), []
            count = len(facts["entries"])
            flags = read_flags(v, tree, segment["flags"], count, label + b": which messages were deleted, new, or read")
            for entry, flag in ((entry, flags[i]) for i, entry in enumerate(facts["entries"]) if flags[i] is not None):
                with attempt(v, label + b": a message"):
                    side, file = {b"c": b"cur", b"n": b"new"}[flag[:1]], name_of(entry["name"]) + flag[1:]
                    if b"/" in file or not entry["name"]:
                        raise Damage("refused: the name of a message is unsafe")
                    pairs.append((os.path.join(where, side, file), entry))
            done += put_all(v, facts, base, pairs)
    return done


def restore_files(v, record, segments, base):
    """A tree of files; returns how many entries."""
    done = 0
    for segment in segments:
        with attempt(v, short(v, base) + f": {segment.get('count')} entries".encode()):
            files = read_record(v, record, segment["ref"], "files")
            done += put_all(v, files, base, [(name_of(entry["name"]), entry) for entry in files["entries"]])
    return done


def restore(v, root, rows, directories):
    """Mailboxes to mail/<address>, directories to files/<path>."""
    for row in rows:
        with attempt(v, b"mail/" + row["dir"]):
            base, done = os.path.join(v["to"], b"mail", row["dir"]), 0
            make_dirs(v, base)
            tree = read_record(v, row["record"], row["tree"], "mailbox")
            restore_files(v, tree, tree["files"], base)
            for folder in tree["folders"]:
                with attempt(v, os.path.join(b"mail", row["dir"], name_of(folder["name"]))):
                    done += restore_folder(v, tree, folder, base)
            print(f"mail/{show(row['dir'])}: {done} of {row['messages']} messages{stale(row)}", flush=True)
    for directory in directories:
        with attempt(v, b"files" + name_of(directory["path"])):
            path = name_of(directory["path"]).strip(b"/")
            base = os.path.join(v["to"], b"files", safe(path)) if path else os.path.join(v["to"], b"files")
            make_dirs(v, base)
            done = restore_files(v, root, directory["segments"], base)
            print(f"files/{show(path)}: {done} entries (listed: {directory['files']} files){stale(directory)}", flush=True)
    finish(v)


def stale(row):
    return " (as of an earlier snapshot: it could not be read that time)" if row.get("stale") else ""


def list_snapshots(v):
    """A line for each snapshot, newest last."""
    print("       seq  time                  outcome      messages")
    for seq, known in sorted(v["snapshots"].items()):
        count = "?"
        with attempt(v, f"snapshot {seq}"):
            count = sum(whole(source["messages"]) for source in read_snapshot(v, seq)["sources"] if source["kind"] == "mail")
        print(f"{seq:10}  {show(known['time']):20}  {show(known['outcome']):10}  {count:>9}")


def list_content(root, rows):
    for row in rows:
        print(f"{show(row['address'])}  {row['messages']} messages  {row['bytes']} bytes  key {show(row['key'])}{stale(row)}")
    for row in root["directories"]:
        print(f"{show(name_of(row['path']))}  {row['files']} files  {row['bytes']} bytes{stale(row)}")


# ---------------------------------------------------------------- command line


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--vault", required=True, metavar="DIR", help="the vault, or a copy of it")
    parser.add_argument("--identity", required=True, metavar="KIT", help="the recovery kit, or an age identity file")
    parser.add_argument("--list", action="store_true", help="list snapshots, or with --at what is in one")
    parser.add_argument("--at", type=int, metavar="SEQ", help="the number of a snapshot (default: the newest)")
    parser.add_argument("--mailbox", metavar="ADDRESS_OR_KEY", help="only this mailbox, and no directories")
    parser.add_argument("--to", metavar="DIR", help="restore to this directory, which must be empty or absent")
    parser.add_argument("--owners", action="store_true", help="give everything back to its owner (as root)")
    parser.add_argument("--admin", metavar="HEX", help="the admin's public key, where the identity does not name it")
    parser.add_argument("--vault-id", metavar="HEX", help="the vault's id, where the identity does not name it")
    parser.add_argument("--head", metavar="SEQ:HASH", help="an entry of the ledger that was seen, besides the kit's")
    parser.add_argument("--trust-store", action="store_true", help="without an admin key: believe the vault about itself")
    args = parser.parse_args()
    if bool(args.list) == bool(args.to):
        parser.error("give either --list or --to DIR")
    if not os.path.isdir(args.vault):
        parser.error(f"{args.vault} is not a directory")
    missing = [program for program in ("age", "zstd", "openssl") if not shutil.which(program)]
    if missing:
        parser.error(f"these programs are missing: {' '.join(missing)} (apt-get install age zstd openssl)")
    return args


def prepare_target(v, args):
    v["to"], v["owners"] = os.path.abspath(os.fsencode(args.to)), args.owners and os.geteuid() == 0
    os.makedirs(v["to"], 0o700, exist_ok=True)
    if os.listdir(v["to"]):
        stop(2, f"{args.to} is not empty")
    if not v["owners"]:
        warn("owners are not restored, nor set-uid and set-gid bits of files (that takes root and --owners)")
    v["drafts"] = os.path.join(v["to"], b".rescue-" + os.urandom(4).hex().encode())
    os.mkdir(v["drafts"], 0o700)
    v["made"].add(v["to"])


def choose(v, at):
    """Seq and content of the snapshot that was asked for."""
    seq = max(v["snapshots"], default=0) if at is None else at
    if seq not in v["snapshots"]:
        stop(2, f"there is no snapshot {seq}" if seq else "there is no snapshot yet")
    try:
        return seq, read_snapshot(v, seq)
    except (Damage, *MALFORMED) as problem:
        stop(7 if v["no_key"] else 4, f"snapshot {seq}: {show(problem)}")


def run(v, args):
    text = read_kit(v, args.identity)
    find_anchors(v, args, text)
    check_ledger(v)
    check_texts(v)
    if args.list and args.at is None:
        return list_snapshots(v)
    seq, snapshot = choose(v, args.at)
    print(f"snapshot {seq} of {show(snapshot['host'])}, {show(snapshot['time'])}, {show(snapshot['outcome'])}", flush=True)
    rows, root = mailbox_table(v, snapshot["root"]), snapshot["root"]
    if args.mailbox:
        rows = [row for row in rows if os.fsencode(args.mailbox) in (row["address"], row["key"])]
        if not rows:
            stop(4 if v["lost"] else 2, f"there is no mailbox {args.mailbox} in snapshot {seq}; see --list --at {seq}")
    if args.list:
        return list_content(root, rows)
    prepare_target(v, args)
    return restore(v, root, rows, [] if args.mailbox else root["directories"])


def main():
    sys.stdout.reconfigure(errors="backslashreplace")
    sys.stderr.reconfigure(errors="backslashreplace")
    args = options()
    os.umask(0o077)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # so that the secrets are removed
    v = {"vault": args.vault, "tmp": tempfile.mkdtemp(dir=MEMORY)}
    v.update({kind: {} for kind in ("packs", "keys", "snapshots", "texts", "identities", "footers", "damage", "twins")})
    v.update({"late_links": {}, "late_dirs": {}, "cache": collections.OrderedDict(), "writers": set(), "made": set()})
    v.update({"trust": [], "lost": [], "no_key": False, "pool": concurrent.futures.ThreadPoolExecutor(WORKERS)})
    try:
        run(v, args)
        for problem in (*v["damage"], *v["lost"]):
            warn(("damaged: " if problem in v["damage"] else "NOT RESTORED: ") + problem)
        sys.stdout.flush()
        return (7 if v["no_key"] else 4) if v["lost"] or v["damage"] else 0
    except MALFORMED as problem:
        warn(f"the snapshot is malformed ({type(problem).__name__}: {show(problem)})")
        return 4
    except OSError as problem:
        warn(f"cannot go on: {problem}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # if nobody reads what we print, say it once only
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        v["pool"].shutdown(cancel_futures=True)
        shutil.rmtree(v["tmp"], ignore_errors=True)
        shutil.rmtree(v.get("drafts", v["tmp"]), ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
