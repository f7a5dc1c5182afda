"""The configuration: read from TOML, checked, and written with words for people (the options themselves: `model.options`).

Unknown keys are errors, since a misspelt option that is silently ignored is found on the day of the restore.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator
from itertools import takewhile
from typing import Any, NoReturn, get_args, get_type_hints
from urllib.parse import quote

from mailbackup.errors import ConfigInvalid, ConfigMissing, KeyProblem, UsageError
from mailbackup.model.codec import Record, convert
from mailbackup.model.options import (
    STORE_OPTIONS,
    WORDS,
    BackupConfig,
    Config,
    DirectoryConfig,
    Host,
    MailConfig,
    NotifyConfig,
    Recipient,
    StoreConfig,
    SystemsConfig,
    Trust,
    store_from_url,
)
from mailbackup.model.tree import DUMPS, SYSTEM

__all__ = ["BackupConfig", "Config", "DirectoryConfig", "Host", "MailConfig", "NotifyConfig", "Recipient", "StoreConfig", "Trust"]
__all__ += [
    "check",
    "compose",
    "default_path",
    "default_store_dir",
    "file_url",
    "literal_root",
    "load",
    "mail_name",
    "parse",
    "render",
    "store_from_url",
    "store_problems",
]
__all__ += ["SystemsConfig", "state_dir", "user_config", "without_secrets"]

SYSTEM_CONFIG = "/etc/mailbackup/mailbackup.toml"
_STORE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_STORE_NUMBERS = (
    ("reserve", 0, 1 << 60),
    ("quota", 0, 1 << 60),
    ("lock_days", 0, 3650),
    ("bandwidth", 10_000, 1 << 40),
    ("connections", 1, 64),
    ("patience", 0, 86_400),
)
_LATER = {
    "": ("drill",),
    "notify": ("urls_file",),
    "mail": ("home", "export"),
}  # section → keys that a later version will know


# ---------------------------------------------------------------- places


def user_config() -> str:
    """Path of the configuration of an ordinary user."""
    return os.path.join(_xdg("XDG_CONFIG_HOME", ".config"), "mailbackup", "mailbackup.toml")


def default_path() -> str:
    """Where `init` writes the configuration unless told otherwise."""
    return SYSTEM_CONFIG if os.geteuid() == 0 else user_config()


def default_store_dir() -> str:
    """Where the local vault lies unless told otherwise; never below the state, so that clearing a cache cannot touch backups."""
    return "/var/backups/mailbackup" if os.geteuid() == 0 else os.path.join(_xdg("XDG_DATA_HOME", ".local/share"), "mailbackup", "vault")


def state_dir(config_path: str, option: str | None) -> str:
    """Directory of the state: `option`, `$MAILBACKUP_STATE`, a `mailbackup.state` beside `mailbackup.toml` if there is one, the default."""
    chosen = option or os.environ.get("MAILBACKUP_STATE")
    if chosen:
        return os.path.abspath(chosen)
    beside = os.path.splitext(os.path.abspath(config_path))[0] + ".state"
    if os.path.isdir(beside):
        return beside
    return "/var/lib/mailbackup" if os.geteuid() == 0 else os.path.join(_xdg("XDG_STATE_HOME", ".local/state"), "mailbackup")


def file_url(path: str) -> str:
    """The store address of a local directory."""
    return "file://" + quote(os.fsencode(os.path.abspath(path)))


def _xdg(variable: str, below_home: str) -> str:
    return os.environ.get(variable) or os.path.join(os.path.expanduser("~"), below_home)


# ---------------------------------------------------------------- reading


def load(path: str | None = None) -> tuple[Config, str]:
    """The configuration and the absolute path of its file (`path`, or the first of the usual places).

    Raises ConfigMissing when there is none, ConfigInvalid with file and key when it is not valid.
    """
    found = _find(path)
    try:
        with open(found, "rb") as file:
            text = file.read().decode("utf-8")
    except OSError as error:
        raise ConfigInvalid(f"cannot read {found}: {error.strerror}", hint="Run as a user who may read it.") from None
    except UnicodeDecodeError as error:
        raise ConfigInvalid(f"{found}: not UTF-8 text (byte {error.start})") from None
    return parse(text, found), found


def _find(path: str | None) -> str:
    places = [path] if path else list(dict.fromkeys((SYSTEM_CONFIG, user_config())))
    for place in places:
        if os.path.lexists(place):
            return os.path.abspath(place)
    raise ConfigMissing(f"no configuration: {' and '.join(places)} {'does' if len(places) == 1 else 'do'} not exist")


def parse(text: str, where: str) -> Config:
    """The configuration in `text`; `where` names it in errors. Raises ConfigInvalid."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason, _, place = str(error).rpartition(" (at ")
        line = re.match(r"line (\d+)", place)
        raise ConfigInvalid(f"{where}:{line[1] if line else text.count(chr(10)) + 1}: {reason or error}") from None
    _check_keys(raw, Config, "", where)
    _add_names(raw)
    try:
        config = convert(raw, Config)
    except ValueError as error:
        raise ConfigInvalid(f"{where}: {_in_words(str(error))}") from None
    check(config, where)
    return config


def _check_keys(table: Any, kind: type[Record], section: str, where: str) -> None:
    """Every key of a table must be a field of its record; also in the tables below it."""
    if not isinstance(table, dict):
        return  # the conversion says it better
    fields = dict(zip(kind.__struct_encode_fields__, get_type_hints(kind).values(), strict=True))
    later = _LATER.get(section.partition("[")[0], ())
    for key, member in table.items():
        if key not in fields:
            _unknown(key, list(fields), section, key in later, where)
        for inner in _records(fields[key]):
            place = f"{section}.{key}" if section else key
            rows = [(f"{place}[{n}]", row) for n, row in enumerate(member)] if isinstance(member, list) else [(place, member)]
            for name, row in rows:
                _check_keys(row, inner, name, where)


def _records(hint: Any) -> list[type[Record]]:
    """The record type in `Backup` or `tuple[StoreConfig, ...]`, if there is one."""
    return [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and issubclass(kind, Record)]


def _unknown(key: str, known: list[str], section: str, later: bool, where: str) -> NoReturn:
    inside = f" in [{section}]" if section else ""
    if later:
        name = key if section else f"[{key}]"
        raise ConfigInvalid(f"{where}: {name}{inside} is not supported by this version yet", hint="Remove it, or turn it into a comment.")
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f"Did you mean '{near[0]}'?" if near else f"Known here: {', '.join(known)}."
    raise ConfigInvalid(f"{where}: unknown key '{key}'{inside}", hint=hint)


def _add_names(raw: dict[str, Any]) -> None:
    """Names of sources that were left out. Touches only what has the right type; the conversion reports the rest."""
    for key, name_of in (("mail", mail_name), ("directory", str)):
        rows = raw.get(key)
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict) and isinstance(row.get("path"), str):
                row.setdefault("name", name_of(row["path"]))


def _in_words(error: str) -> str:
    """`Expected `int`, got `str` - at `$.backup.level`` → `backup.level: expected int, got str`."""
    message, _, place = error.replace("`", "").partition(" - at $.")
    message = message.replace("Object missing required field", "missing:").replace("array", "[[…]]").replace("object", "table")
    message = message[:1].lower() + message[1:]
    return f"{place}: {message}" if place else message


# ---------------------------------------------------------------- checking


def literal_root(pattern: str) -> str:
    """The part of a pattern before its first placeholder: the directory under which all its mailboxes lie."""
    fixed = takewhile(lambda part: not re.search(r"[{*]", part), filter(None, pattern.split("/")))
    return "/" + "/".join(fixed)


def mail_name(pattern: str) -> str:
    """Default name of a mail location: the last literal directory before the first placeholder."""
    return os.path.basename(literal_root(pattern)) or "mail"


def check(config: Config, where: str) -> None:
    """Everything that types cannot say. Raises ConfigInvalid for the first problem found."""
    for place, problem, hint in _problems(config):
        raise ConfigInvalid(f"{where}: {place}: {problem}", hint=hint)


_Problem = tuple[str, str, str | None]


def _problems(config: Config) -> Iterator[_Problem]:
    if not config.host.name.strip():
        yield "host.name", "is empty", None
    yield from _recipient_problems(config)
    for key, digits in (("vault", 32), ("admin", 64), ("writer", 64)):
        if not re.fullmatch(f"[0-9a-f]{{{digits}}}", getattr(config.trust, key)):
            hint = "'mailbackup init' writes this section; the recovery kit has it too."
            yield f"trust.{key}", f"expected {digits} hexadecimal digits", hint
    yield from _source_problems(config)
    yield from _store_problems(config)
    yield from _number_problems(config.backup)
    yield from _retention_problems(config)
    if config.notify.ping is not None:
        from mailbackup.notify import url_problem

        problem = url_problem(config.notify.ping)
        if problem is not None:
            yield "notify.ping", problem, "Write the whole address that the watchdog gave you."


def _recipient_problems(config: Config) -> Iterator[_Problem]:
    from mailbackup.crypto.age import check_recipient  # late: reading the age library costs more than reading the configuration

    if not config.recipients:
        yield "recipient", "there is no [[recipient]], so nobody could read the backups", None
    for n, recipient in enumerate(config.recipients):
        try:
            check_recipient(recipient.key)
        except (KeyProblem, ValueError) as error:
            yield f"recipient[{n}].key", str(error), None


def _source_problems(config: Config) -> Iterator[_Problem]:
    from mailbackup.mail.pattern import Pattern

    nothing = not config.mail and not config.directories and not config.systems.use
    if nothing and config.retention.key_file is None:  # with it this is a machine that only prunes
        yield "mail", "there is no [[mail]], no [[directory]] and no [systems], so there is nothing to save", None
    yield from _system_problems(config)
    for n, mail in enumerate(config.mail):
        try:
            Pattern.parse(mail.path)
        except ValueError as error:
            yield f"mail[{n}].path", str(error), None
    rows = [(f"mail[{n}]", m.name, m.path) for n, m in enumerate(config.mail)]
    rows += [(f"directory[{n}]", d.name, d.path) for n, d in enumerate(config.directories)]
    seen: set[str] = set()
    for place, name, path in rows:
        if name == DUMPS or name.startswith(SYSTEM):
            yield f"{place}.name", f"the name '{name}' is reserved", None
        if not path.startswith("/"):
            yield f"{place}.path", f"'{path}' is not an absolute path", "Write the whole path, beginning with '/'."
        if name in seen or not name:
            problem = f"two sources are called '{name}'" if name else "is empty"
            yield f"{place}.name", problem, "Give each source a name of its own with name = …"
        seen.add(name)


def _system_problems(config: Config) -> Iterator[_Problem]:
    if config.systems.use in ("auto", ()):
        return
    from mailbackup.systems.known import NAMES  # late: few name them

    for name in config.systems.use:
        if name not in NAMES:
            yield "systems.use", f"there is no system '{name}'", f'Known: {", ".join(NAMES)}; or "auto".'


def _store_problems(config: Config) -> Iterator[_Problem]:
    if not config.stores:
        yield "store", "there is no [[store]], so there is nowhere to save to", None
    names = [store.name for store in config.stores]
    for n, store in enumerate(config.stores):
        if not store.name or names.index(store.name) != n:
            yield f"store[{n}].name", f"two stores are called '{store.name}'" if store.name else "is empty", None
        elif not _STORE_NAME.fullmatch(store.name):
            yield f"store[{n}].name", f"'{store.name}' is no name", "Letters, digits and . _ - (not at its beginning), at most 64."
        for option, problem, hint in store_problems(store):
            yield f"store[{n}].{option}", problem, hint
        if store.scheme in ("file", "borg"):
            yield from _place_problems(config, n, store)


def _place_problems(config: Config, n: int, store: StoreConfig) -> Iterator[_Problem]:
    """A store on this machine must not lie inside what is saved."""
    try:
        path = store.path
    except ValueError as error:
        yield f"store[{n}].url", f"'{store.url}': {error}", None
        return
    for source in (*(literal_root(m.path) for m in config.mail), *(d.path for d in config.directories)):
        if _inside(path, source):
            yield (
                f"store[{n}].url",
                f"{path} lies inside the source {source}: the vault would save itself",
                "Choose a place outside of all sources.",
            )


def store_problems(store: StoreConfig) -> Iterator[_Problem]:
    """Option, problem and hint of everything that is wrong with one `[[store]]` by itself."""
    if store.scheme not in STORE_OPTIONS or "://" not in store.url:
        shown = store.url.partition("://")[0] if "://" in store.url else store.url  # the rest may hold a password
        yield "url", f"unknown kind of store '{shown}'", f"Known: {', '.join(f'{scheme}://' for scheme in STORE_OPTIONS)}."
        return
    defaults = StoreConfig(name="", url="")
    for option in StoreConfig.__struct_fields__[2:]:
        if getattr(store, option) != getattr(defaults, option) and option not in STORE_OPTIONS[store.scheme]:
            yield option, f"means nothing for a {store.scheme}:// store", "Remove it."
    for option, low, high in _STORE_NUMBERS:
        value = getattr(store, option)
        if value is not None and not low <= value <= high:
            yield option, f"{value} is not between {low} and {high}", None
    if store.scheme != "file" and ("@" in store.url and ":" in store.url.partition("://")[2].partition("@")[0]):
        yield "url", "holds a password", "Passwords do not belong into this file: see the guide of this kind of store."
    if store.endpoint is not None and "@" in store.endpoint.partition("://")[2].partition("/")[0]:
        yield "endpoint", "holds a password", "Credentials of S3 are found as every AWS program finds them: see the guide."
    if store.scheme == "s3" and not re.fullmatch(r"s3://[A-Za-z0-9.-]{3,63}(/[^?#]*)?", store.url):
        yield "url", f"'{store.url}': expected s3://bucket/folder", None


def _inside(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or lies below it, as written or with symbolic links resolved."""
    pairs = ((os.path.normpath(path), os.path.normpath(directory)), (os.path.realpath(path), os.path.realpath(directory)))
    return any(os.path.commonpath((inner, outer)) == outer for inner, outer in pairs if inner.startswith("/") and outer.startswith("/"))


def _number_problems(backup: BackupConfig) -> Iterator[_Problem]:
    for key, value, low, high in (
        ("level", backup.level, 1, 19),
        ("max_shrink", backup.max_shrink, 0, 1),
        ("freeze_gone", backup.freeze_gone, 0, 1),
        ("freeze_changed", backup.freeze_changed, 0, 1),
        ("rescan_days", backup.rescan_days, 0, 3650),
        ("gather_budget", backup.gather_budget, 0, 1 << 50),
        ("workers", 1 if backup.workers == "auto" else backup.workers, 1, 1024),
    ):
        if not low <= value <= high:
            yield f"backup.{key}", f"{value} is not between {low} and {high}", None


def _retention_problems(config: Config) -> Iterator[_Problem]:
    from mailbackup.model.retention import problems

    rules = config.retention
    policies = [("retention", rules), *((f"store[{n}].retention", s.retention) for n, s in enumerate(config.stores) if s.retention)]
    for place, policy in policies:
        for problem in problems(policy):
            yield place, problem, "See docs/guides/retention.md."
    for key, value, low, high in (
        ("grace_days", rules.grace_days, 7, 3650),  # a run that is paused for longer than 5 days starts anew
        ("max_share", rules.max_share, 0, 1),
        ("audit_days", rules.audit_days, 1, 3650),
        ("silence_days", rules.silence_days, 1, 3650),
    ):
        if not low <= value <= high:
            yield f"retention.{key}", f"{value} is not between {low} and {high}", None
    if rules.silence_days > rules.grace_days:
        problem = f"{rules.silence_days} is more than grace_days ({rules.grace_days}): a clock that went ahead could end every grace period unnoticed"
        yield "retention.silence_days", problem, None


# ---------------------------------------------------------------- writing


def compose(
    *,
    host: str,
    recipient: str,
    trust: Trust,
    mail: tuple[str, ...] = (),
    directories: tuple[str, ...] = (),
    stores: tuple[str, ...],
    domain: str | None = None,
    systems: SystemsConfig | None = None,
) -> Config:
    """The configuration that `init` makes from its options, checked. Raises UsageError."""
    names = _unique([mail_name(path) for path in mail])
    config = Config(
        host=Host(name=host),
        recipients=(Recipient(role="recovery", key=recipient),),
        trust=trust,
        stores=_stores(stores),
        mail=tuple(MailConfig(name=name, path=path, domain=domain) for name, path in zip(names, mail, strict=True)),
        directories=tuple(DirectoryConfig(name=path, path=path) for path in directories),
        systems=systems or SystemsConfig(),
    )
    try:
        check(config, "this configuration")
    except ConfigInvalid as error:
        raise UsageError(error.message, hint=None if error.hint == ConfigInvalid.default_hint else error.hint) from None
    return config


def _stores(urls: tuple[str, ...]) -> tuple[StoreConfig, ...]:
    """Stores named for their kind. Raises UsageError."""
    names = _unique([_KINDS.get(url.partition("://")[0].lower(), "store") for url in urls])
    try:
        return tuple(store_from_url(name, url) for name, url in zip(names, urls, strict=True))
    except ValueError as error:
        raise UsageError(
            f"--store: {error}", hint="Options stand behind a '?', as in s3://bucket/folder?endpoint=https://s3.example.net."
        ) from None


_KINDS = {"file": "local", "s3": "s3", "borg": "borg", "borg+ssh": "borg"}


def _unique(names: list[str]) -> list[str]:
    return [name if names.index(name) == n else f"{name}-{names[: n + 1].count(name)}" for n, name in enumerate(names)]


def render(config: Config, comments: bool = True) -> str:
    """The configuration as TOML. With `comments` every option is explained, and those at their default stand as comments."""
    blocks = [_HEAD] if comments else []
    explained: set[tuple[type[Record], tuple[str, ...]]] = set()
    for field, key in zip(Config.__struct_fields__, Config.__struct_encode_fields__, strict=True):
        value = getattr(config, field)
        for n, row in enumerate(value if isinstance(value, tuple) else (value,)):
            header = f"[[{key}]]" if isinstance(value, tuple) else f"[{key}]"
            kind = (type(row), _options(row))
            told = comments and kind not in explained  # a second section of its kind needs no words
            explained.add(kind)
            body = [line for option in kind[1] for line in _option(row, option, told)]
            if body or comments:
                blocks.append("\n".join([*(WORDS[type(row)][""].splitlines() if comments and n == 0 else ()), header, *body]))
    if comments and not config.directories:
        blocks.append(_NO_DIRECTORY)
    return "\n\n".join(blocks) + "\n"


def without_secrets(config: Config) -> Config:
    """The configuration as it may be shown."""
    members = {field: getattr(config, field) for field in Config.__struct_fields__}
    return Config(**members | {"notify": NotifyConfig(ping=config.notify.ping and "(hidden)")})


def _options(row: Record) -> tuple[str, ...]:
    """The options that are written: of a store those that mean something for its kind."""
    if isinstance(row, StoreConfig):
        return ("name", "url", *STORE_OPTIONS.get(row.scheme, ()))
    return row.__struct_fields__


def _option(row: Record, option: str, comments: bool) -> list[str]:
    """Lines of one option. Defaults are written as comments, and only when comments are wanted."""
    value = getattr(row, option)
    defaults = dict(zip(reversed(row.__struct_fields__), reversed(row.__struct_defaults__), strict=False))
    words, _, example = WORDS[type(row)][option].partition(" | ")
    explained = [f"# {words}"] if comments else []
    if option not in defaults or value != defaults[option]:
        return [*explained, f"{option} = {_toml(value)}"]
    return [*explained, f"# {option} = {example or _toml(value)}"] if comments else []


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(member) for member in value)}]"
    if isinstance(value, Record):
        set_here = zip(value.__struct_fields__, value.__struct_defaults__, strict=True)
        return _toml({field: getattr(value, field) for field, default in set_here if getattr(value, field) != default})
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(member)}" for key, member in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # a TOML string is a JSON string, save for DEL


_HEAD = """\
# Configuration of mailbackup. A line such as "# level = 3" shows an option at its default: remove the "# " to change it.
# After a change: mailbackup config check"""

_NO_DIRECTORY = """\
# A directory that is saved with everything below it. This section may stand several times.
# [[directory]]
# path = "/etc\""""
