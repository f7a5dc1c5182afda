"""The options of the configuration: typed records, and what each option means in plain words.

Reading, checking and writing them is `mailbackup.config`.
"""

from __future__ import annotations

import os
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlencode

from mailbackup.model.codec import Record, convert
from mailbackup.model.retention import Policy


class Host(Record, frozen=True, kw_only=True):
    """`[host]`"""

    name: str


class Recipient(Record, frozen=True, kw_only=True):
    """`[[recipient]]`: who can read the backups."""

    role: Literal["recovery", "drill"]
    key: str


class Trust(Record, frozen=True, kw_only=True):
    """`[trust]`: the anchors. Vault id and public keys, in hexadecimal."""

    vault: str
    admin: str
    writer: str


class StoreConfig(Record, frozen=True, kw_only=True):
    """`[[store]]`. Sizes in bytes, `bandwidth` in bytes per second, `patience` in seconds. `reserve`: None = 5 % of the file system, at most 5 GiB."""

    name: str
    url: str
    # a directory
    reserve: int | None = None
    quota: int | None = None
    retention: Policy | None = None  # instead of that of [retention]
    # S3
    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    addressing: Literal["auto", "path", "virtual"] = "auto"
    ca_bundle: str | None = None
    storage_class: str | None = None
    sse: Literal["AES256", "aws:kms"] | None = None
    sse_key: str | None = None
    tags: dict[str, str] = {}
    lock_days: int = 0
    lock_mode: Literal["governance", "compliance"] = "compliance"
    create_only: bool = True
    bandwidth: int | None = None
    connections: int = 8
    patience: int = 120
    # Borg
    passphrase_command: str | None = None
    rsh: str | None = None
    remote_path: str | None = None
    borg_path: str = "borg"

    @property
    def scheme(self) -> str:
        """Kind of its address: `file`, `s3`, `borg` or `borg+ssh`; whatever else stands there."""
        return self.url.partition("://")[0].lower()

    @property
    def path(self) -> str:
        """Absolute path of a `file://` or `borg://` store. Raises ValueError for other addresses."""
        path = unquote(self.url.partition("://")[2], errors="surrogateescape")
        if self.scheme not in ("file", "borg") or not path.startswith("/") or "\0" in path:
            raise ValueError(f"expected {'borg' if self.scheme == 'borg' else 'file'}:///absolute/path")
        return os.path.normpath(path)


STORE_OPTIONS: dict[str, tuple[str, ...]] = {
    "file": ("reserve", "quota", "retention"),
    "s3": (
        *("endpoint", "region", "profile", "addressing", "ca_bundle", "storage_class", "sse", "sse_key", "tags", "lock_days", "lock_mode"),
        *("create_only", "bandwidth", "connections", "patience", "retention"),
    ),
    "borg": ("passphrase_command", "borg_path", "patience", "retention"),
    "borg+ssh": ("passphrase_command", "rsh", "remote_path", "borg_path", "patience", "retention"),
}
"""Kind of address → the options of `[[store]]` that mean something there."""


_NOT_IN_URLS = ("tags", "retention")


def store_from_url(name: str, text: str) -> StoreConfig:
    """A store as it is named in one line: its address, and options behind a `?` (s3://bucket/mx1?endpoint=https://s3.example.net&lock_days=30).

    Raises ValueError for options that do not exist or have the wrong type.
    """
    url, _, query = text.partition("?") if not text.startswith("file:") else (text, "", "")
    options: dict[str, object] = {}
    for key, value in parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)):
        if key not in StoreConfig.__struct_fields__[2:] or key in _NOT_IN_URLS:
            raise ValueError(f"a store has no option '{key}'")
        known = {"true": True, "false": False}.get(value.lower())
        options[key] = known if known is not None else int(value) if value.isdecimal() else value
    return convert({"name": name, "url": url} | options, StoreConfig)


def store_to_url(store: StoreConfig) -> str:
    """A store in one line, as `store_from_url` reads it. Tags and retention are left out: nobody needs them to read."""
    defaults = StoreConfig(name="", url="")
    given = {key: getattr(store, key) for key in StoreConfig.__struct_fields__[2:] if key not in _NOT_IN_URLS}
    options = [
        (key, str(value).lower() if isinstance(value, bool) else str(value))
        for key, value in given.items()
        if value != getattr(defaults, key)
    ]
    return f"{store.url}?{urlencode(options, safe=':/')}" if options and store.scheme != "file" else store.url


class MailConfig(Record, frozen=True, kw_only=True):
    """`[[mail]]`: where mailboxes lie. `path` is a pattern of `mailbackup.mail.pattern`."""

    name: str
    path: str
    format: Literal["maildir"] = "maildir"
    domain: str | None = None


class DirectoryConfig(Record, frozen=True, kw_only=True):
    """`[[directory]]`: a directory that is saved with everything below it."""

    name: str
    path: str
    exclude: tuple[str, ...] = ()
    one_file_system: bool = True


class SystemsConfig(Record, frozen=True, kw_only=True):
    """`[systems]`: mail programs whose configuration, keys and data are saved too. "auto" = those that are found."""

    use: Literal["auto"] | tuple[str, ...] = ()


class BackupConfig(Record, frozen=True, kw_only=True):
    """`[backup]`: how a run works. `max_shrink`, `freeze_gone` and `freeze_changed` are shares, 0 to 1; `rescan_days` 0 = every run; `gather_budget` in
    bytes, 0 = none."""

    level: int = 3
    max_shrink: float = 0.5
    freeze_gone: float = 0.5
    freeze_changed: float = 0.1
    rescan_days: int = 7
    gather_budget: int = 1 << 30
    workers: Literal["auto"] | int = "auto"


class RetentionConfig(Policy, frozen=True, kw_only=True):
    """`[retention]`: what `prune` keeps, and where it stops for a human. `max_share` is a share, 0 to 1."""

    grace_days: int = 7
    max_share: float = 0.2
    audit_days: int = 35
    silence_days: int = 7
    key_file: str | None = None


class NotifyConfig(Record, frozen=True, kw_only=True):
    """`[notify]`. `ping` is a secret: whoever knows it can pretend that all is well."""

    ping: str | None = None

    def __repr__(self) -> str:
        return f"NotifyConfig(ping={'…' if self.ping else None})"


class Config(
    Record,
    frozen=True,
    kw_only=True,
    rename={"recipients": "recipient", "stores": "store", "directories": "directory"},
):
    """Everything that is configured. Paths are absolute and names unique; `load` and `compose` see to that."""

    host: Host
    recipients: tuple[Recipient, ...] = ()
    trust: Trust
    stores: tuple[StoreConfig, ...] = ()
    mail: tuple[MailConfig, ...] = ()
    directories: tuple[DirectoryConfig, ...] = ()
    systems: SystemsConfig = SystemsConfig()
    backup: BackupConfig = BackupConfig()
    retention: RetentionConfig = RetentionConfig()
    notify: NotifyConfig = NotifyConfig()


WORDS: dict[type[Record], dict[str, str]] = {
    Host: {"": "# This machine.", "name": "Its name in snapshots, and the domain of mailboxes that have none."},
    Recipient: {
        "": "# Who can read the backups. Every snapshot is sealed to all keys named here; the secret halves are not on this machine.",
        "role": '"recovery" for the recovery kit, "drill" for a machine that rehearses restores.',
        "key": "Its public key (age1… or an ssh public key).",
    },
    Trust: {
        "": "# What makes this vault ours; written by init and never read from a store. Do not change it by hand.",
        "vault": "The vault's id.",
        "admin": "Public key of the administrator; the secret half lies in the recovery kit.",
        "writer": "Public key of this host, which signs every snapshot.",
    },
    StoreConfig: {
        "": "# Where backups go. This section may stand several times: every store gets every snapshot, and restores read the first that can be reached.",
        "name": "A short name, for --store.",
        "url": "Its address: file:///absolute/path, s3://bucket/folder, borg:///absolute/path or borg+ssh://user@host:port/./path.",
        "reserve": "file: bytes of free space that are never used. The default is 5 % of the file system, at most 5 GiB. | 5368709120",
        "quota": "file: bytes that the store may hold. | 1099511627776",
        "retention": "What `mailbackup prune` keeps here, instead of what [retention] says. | { daily = 14, monthly = 36 }",
        "endpoint": 'S3: address of the service, unless it is AWS. | "https://s3.example.net"',
        "region": 'S3: region. | "eu-central-1"',
        "profile": 'S3: profile in ~/.aws/credentials; the default is what the environment says. | "mailbackup"',
        "addressing": 'S3: "path" for services without a host name for each bucket.',
        "ca_bundle": 'S3: file of the certificates that are trusted. | "/etc/ssl/certs/ca-certificates.crt"',
        "storage_class": 'S3: storage class of packs; everything else is small and stays in the default class. | "STANDARD_IA"',
        "sse": 'S3: encryption by the service ("AES256" or "aws:kms"); everything is sealed before it goes there anyway. | "AES256"',
        "sse_key": 'S3: key for "aws:kms". | "alias/backup"',
        "tags": 'S3: tags of every object. | { purpose = "backup" }',
        "lock_days": "S3: nobody can remove an object before so many days (Object Lock); the bucket must be made for it.",
        "lock_mode": 'S3: "compliance" binds everybody, "governance" all who lack a special permission.',
        "create_only": "S3: false for a service that ignores If-None-Match (doctor finds out): then nothing protects against a second writer.",
        "bandwidth": "S3: bytes per second, up and down. | 10000000",
        "connections": "S3: requests at once.",
        "patience": "Seconds that a request is tried again while the store does not answer.",
        "passphrase_command": 'Borg: command that prints the passphrase of the repository. | "systemd-creds cat borg"',
        "rsh": 'Borg: remote shell. | "ssh -i /root/.ssh/backup"',
        "remote_path": 'Borg: program on the other side. | "borg-1.4"',
        "borg_path": "Borg: program on this side.",
    },
    MailConfig: {
        "": "# Where mailboxes lie. This section may stand several times.",
        "name": "A name for this location. Do not change it later: it is part of the identity of its mailboxes.",
        "path": "The path of a mailbox, with {domain} and {user} in the places of what differs.",
        "format": 'How mail is stored: "maildir".',
        "domain": 'Domain of the mailboxes when the path has no {domain}. The default is the host\'s name. | "example.org"',
    },
    DirectoryConfig: {
        "": "# A directory that is saved with everything below it. This section may stand several times.",
        "name": "A name for it; the default is its path.",
        "path": "Its absolute path.",
        "exclude": 'What is left out, as patterns of paths below it. | ["*/.cache"]',
        "one_file_system": "Whether to stay on its file system and leave out what is mounted below it.",
    },
    SystemsConfig: {
        "": "# Mail programs whose configuration, keys and data are saved as well (mailbackup systems list).",
        "use": '"auto" for all that are found, or their names. | "auto"',
    },
    BackupConfig: {
        "": "# How a backup works.",
        "level": "Compression, 1 (fast) to 19 (small).",
        "max_shrink": "When more than this share of a source has vanished, its previous state is kept until you say --accept-shrink.",
        "freeze_gone": "When more than this share of all messages was deleted since the last snapshot, pruning waits until somebody looked.",
        "freeze_changed": "The same for messages that have another text under the same name, as after an encryption in place.",
        "rescan_days": "Every file is looked at again after so many days, even where nothing seems to have changed. 0 = in every run.",
        "gather_budget": "Bytes of messages that one run may read again, to bring small pieces of many nights together. 0 = none.",
        "workers": 'Processes that seal: a number, or "auto".',
    },
    RetentionConfig: {
        "": "# What `mailbackup prune` keeps: a snapshot that any rule keeps stays. Nothing is set here, nothing goes.",
        "last": "The newest so many snapshots.",
        "hourly": "One for each of the newest so many hours that have one; and so on.",
        "daily": "Days. | 14",
        "weekly": "Weeks, from Monday. | 8",
        "monthly": "Months. | 12",
        "yearly": "Years. | 3",
        "within": 'Everything that is not older than this, counted back from the newest snapshot. | "30d"',
        "timezone": 'Where days begin; the default is UTC. | "Europe/Berlin"',
        "grace_days": "Days in which everything can be taken back ('mailbackup undelete'); at least 7.",
        "max_share": "When more than this share of the live bytes would go, a human has to say so.",
        "audit_days": "A keyed audit ('mailbackup verify --decrypt') must not be older, while something waits for it.",
        "silence_days": "Without a new snapshot for so many days, nothing goes.",
        "key_file": 'The signing key of the machine that prunes (mailbackup key new). | "/etc/mailbackup/prune.key"',
    },
    NotifyConfig: {
        "": "# Who hears of the jobs.",
        "ping": 'A watchdog elsewhere: it is told when a job begins and how it ends, and notices silence. | "https://hc.example.net/uuid"',
    },
}
"""Record → option → its explanation, then ` | ` and an example where the default shows too little; "" = the section itself."""
