"""What must not leave the machine: tokens, keys, passwords and paths of home folders, found in a file's bytes.

The rules are those of detect-secrets (its plugins for keys of a known form; not the ones that guess by entropy, which
hashes and vocabularies trip), and below what these lack. Nothing is verified: no network is asked.
"""

import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from hfcompress.errors import needs

HEAD, TAIL = 64_000_000, 16_000_000  # bytes of a binary file that are searched, at its beginning and at its end
BEFORE, AFTER = 400, 1600  # characters around a word of a rule that the rule is tried on
PART = 4000  # characters to which such parts are joined: some rules take the square of a part's length
RUN = 12  # characters of text in a binary file, at least
MARKS = (("utf-32", b"\xff\xfe\x00\x00"), ("utf-32", b"\x00\x00\xfe\xff"), ("utf-16", b"\xff\xfe"),
         ("utf-16", b"\xfe\xff"))  # fmt: skip
# Plugin -> words of which one stands in everything that it finds; none: it is tried on the whole text.
PLUGINS = {
    "aws.AWSKeyDetector": ("AKIA", "ASIA", "ABIA", "ACCA", "A3T", "aws"),
    "azure_storage_key.AzureStorageKeyDetector": ("AccountKey=",),
    "discord.DiscordBotTokenDetector": (),
    "github_token.GitHubTokenDetector": ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    "gitlab_token.GitLabTokenDetector": ("glpat-", "gldt-", "glft-", "glsoat-", "glrt-", "GR1348941", "glcbt-",
                                         "glimt-", "glptt-", "glagent-", "gloas-"),
    "jwt.JwtTokenDetector": ("eyJ",),
    "mailchimp.MailchimpDetector": ("-us",),
    "npm.NpmDetector": (":_authToken",),
    "openai.OpenAIDetector": ("T3BlbkFJ",),
    "private_key.PrivateKeyDetector": ("PRIVATE KEY", "PuTTY"),
    "pypi_token.PypiTokenDetector": ("pypi-",),
    "sendgrid.SendGridDetector": ("SG.",),
    "slack.SlackDetector": ("xox", "hooks.slack.com"),
    "square_oauth.SquareOAuthDetector": ("sq0csp-",),
    "stripe.StripeDetector": ("k_live_",),
    "telegram_token.TelegramBotTokenDetector": (),
    "twilio.TwilioKeyDetector": (),
}  # fmt: skip
# A binary file's bytes by what they are: t a printable character of ASCII, z a zero, x another.
MARKED = bytes(
    ord("t") if byte in b"\t\r\n" or 32 <= byte < 127 else ord("x") if byte else ord("z") for byte in range(256)
)
UNITS = {b"t": "ascii", b"tz": "utf-16-le", b"zt": "utf-16-be", b"tzzz": "utf-32-le", b"zzzt": "utf-32-be"}
TOKEN, KEY, PASSWORD, HOME = "a token", "a private key", "a password", "a path of this machine"
START = r"(?<![A-Za-z0-9])"
# Prefixes that their makers gave to tokens, so that they are found -> what follows.
PREFIXED = {
    ("hf_", "api_org_"): r"[A-Za-z0-9]{20,}",
    ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"): r"[A-Za-z0-9]{30,}",
    ("github_pat_",): r"\w{22,}",
    ("glpat-", "gldt-", "glrt-", "glrtr-", "glptt-", "glsoat-", "glft-", "glffct-", "glcbt-", "glimt-"): r"[\w-]{20,}",
    ("sk-",): r"[A-Za-z0-9]{30,}",
    ("sk-proj-", "sk-svcacct-", "sk-admin-", "sk-None-", "sk-ant-", "sk-or-", "sk-lf-"): r"[\w-]{20,}",
    ("AKIA", "ASIA", "ABIA", "ACCA", "AROA", "AIDA"): r"[0-9A-Z]{16}(?![0-9A-Za-z])",
    ("ABSK",): r"[A-Za-z0-9+/]{60,}",
    ("AIza",): r"[\w-]{30,}",
    ("ya29.", "GOCSPX-"): r"[\w-]{20,}",
    ("xoxa-", "xoxb-", "xoxc-", "xoxd-", "xoxe-", "xoxo-", "xoxp-", "xoxr-", "xoxs-", "xapp-"): r"[\w-]{10,}",
    ("npm_",): r"[A-Za-z0-9]{30,}",
    ("dckr_pat_", "dckr_oat_"): r"[\w-]{20,}",
    ("pypi-",): r"[\w-]{50,}",
    ("rubygems_", "dop_v1_", "doo_v1_", "dor_v1_"): r"[a-f0-9]{40,}",
    ("sk_live_", "sk_test_", "rk_live_", "rk_test_"): r"[0-9A-Za-z]{16,}",
    ("whsec_",): r"[A-Za-z0-9+/=]{24,}",
    ("sq0atp-", "sq0csp-", "tvly-"): r"[\w-]{20,}",
    ("shpat_", "shpca_", "shppa_", "shpss_", "dapi", "key-"): r"[a-fA-F0-9]{32}",
    ("pscale_pw_", "pscale_tkn_", "pscale_oauth_"): r"[\w.=-]{20,}",
    ("lin_api_", "ntn_", "nfp_", "r8_", "gsk_", "pplx-", "pcsk_"): r"\w{30,}",
    ("figd_", "nvapi-", "jina_", "fo1_", "HRKU-"): r"[\w-]{30,}",
    ("glsa_", "glc_", "sntrys_", "sntryu_"): r"[\w+/=]{30,}",
    ("hvs.", "hvb.", "hvr."): r"[\w-]{20,}",
    ("dp.pt.", "dp.st.", "dp.ct.", "dp.sa."): r"[A-Za-z0-9.]{30,}",
    ("PMAK-", "lsv2_pt_", "lsv2_sk_"): r"[a-f0-9]{20,}",
    ("xai-",): r"[A-Za-z0-9]{40,}",
    ("NRAK-",): r"[A-Z0-9]{20,}",
    ("sk.eyJ",): r"[\w-]{20,}",
    ("LTAI", "AKID"): r"[A-Za-z0-9]{16,}",
    ("SG.",): r"[\w-]{16,}\.[\w-]{16,}",
    ("pat",): r"[A-Za-z0-9]{14}\.[a-f0-9]{40,}",
}  # fmt: skip
NAMES = (
    r"(?:api|access|auth|account|secret|private|storage|encryption|master|signing|service|subscription)[_-]?key|"
    r"client[_-]?secret|app[_-]?secret|secret[_-]?access[_-]?key|api[_-]?secret|"
    r"(?:access|auth|api|refresh|bearer|bot|hub|github|gitlab|hf|huggingface|slack|npm)[_-]?token"
)
HOME_START = r"(?:(?<![\w/.~%-])|file://)"
# Kind, words of which one stands in all that the rule finds (in small letters for a rule that ignores case), rule.
RULES: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = (
    *(
        (TOKEN, words, re.compile(f"{START}(?:{'|'.join(map(re.escape, words))}){rest}"))
        for words, rest in PREFIXED.items()
    ),
    (TOKEN, (".atlasv1.",), re.compile(r"[A-Za-z0-9]{14}\.atlasv1\.[\w-]{40,}")),
    (
        KEY,
        ("PRIVATE KEY", "PuTTY-User-Key", "AGE-SECRET-KEY"),
        re.compile(r"BEGIN [A-Z0-9 ]{0,60}PRIVATE KEY|PuTTY-User-Key-File-\d|AGE-SECRET-KEY-1[A-Z0-9]{40,}"),
    ),
    (
        TOKEN,
        ("hooks.slack.com", "/api/webhooks/", "webhook.office.com"),
        re.compile(
            r"hooks\.slack\.com/(?:services|workflows|triggers)/[\w/]{16,}|"
            r"discord(?:app)?\.com/api/webhooks/\d+/[\w-]{20,}|webhook\.office\.com/webhookb2/[\w@-]{20,}",
            re.I,
        ),
    ),
    (
        TOKEN,
        ("accountkey=", "sharedaccesskey=", "sharedsecretvalue=", "sig="),
        re.compile(r"(?:AccountKey|SharedAccessKey|SharedSecretValue)=[\w+/%]{32,}={0,2}|[?&]sig=[\w%+/]{32,}", re.I),
    ),
    (
        TOKEN,
        ("authorization", "bearer"),
        re.compile(
            r"authorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic|token)\s+[\w.~+/=-]{12,}|"
            r"\bbearer\s+(?=[\w.~+/=-]{0,200}\d)[\w.~+/=-]{24,}",
            re.I,
        ),
    ),
    (
        TOKEN,
        ("key", "secret", "token"),
        re.compile(
            rf"(?:{NAMES})\b[\"']?\s*[:=]\s*[\"']?"
            r"(?=[\w+/=.-]{0,200}\d)(?=[\w+/=.-]{0,200}[A-Za-z])[\w+/=.-]{16,}",
            re.I,
        ),
    ),
    # kaggle.json, and the settings of a container registry
    (TOKEN, ('"key"',), re.compile(r"\"username\"\s*:\s*\"[^\"]{1,80}\"\s*,\s*\"key\"\s*:\s*\"[0-9a-f]{32}\"")),
    (TOKEN, ('"auth"',), re.compile(r"\"auth\"\s*:\s*\"[A-Za-z0-9+/]{12,}={0,2}\"")),
    (
        PASSWORD,
        ("://",),
        re.compile(r"[a-z][a-z0-9+.-]{1,30}://[^\s/:@\"'<>]{0,100}:[^\s/@\"'<>]{1,200}@[\w\[]", re.I),
    ),
    (
        PASSWORD,
        ("passw", "pwd", "passphrase"),
        re.compile(
            r"\b(?:password|passwd|pwd)\s*=\s*[^;\s\"'<>${}]{3,200};|[;?&](?:password|pwd)=[^;&\s\"'<>${}]{3,}|"
            r"(?:password|passwd|passphrase)[\"']?\s*[:=]\s*[\"']?(?=[^\s\"'<>${}]{0,200}\d)[^\s\"'<>${}(),]{6,}",
            re.I,
        ),
    ),
    # .netrc and .pgpass
    (PASSWORD, ("password",), re.compile(r"\b(?:machine\s+\S{1,200}|default)\s+login\s+\S{1,200}\s+password\s+\S")),
    (PASSWORD, (":5432:",), re.compile(r"[\w.*-]{1,200}:5432:[^:\s]{1,100}:[^:\s]{1,100}:\S")),
    (
        HOME,
        ("/home", "/rhome", "/Users/"),
        re.compile(
            rf"{HOME_START}(?:/[\w.@+-]+)*/(?:homes?\d*|rhome|Users)/[\w.@+-]+|/(?:mnt|cygdrive)/[a-z]/Users/\w+"
        ),
    ),
    (
        HOME,
        ("/root/", "/scratch/", "/gpfs/", "/lustre/", "/private/var/"),
        re.compile(rf"{HOME_START}/(?:root|scratch|gpfs|lustre)/[\w.@+-]+|/private/var/folders/\w\w/\w+"),
    ),
    (
        HOME,
        ("Users", "Documents and Settings", "wsl"),
        re.compile(
            r"[A-Za-z]:(?:\\{1,4}|/)(?:Users|Documents and Settings)(?:\\{1,4}|/)[^\s\\/\"'<>|:*?]+|"
            r"\\{2,4}wsl[.$\w]*\\{1,4}\w+"
        ),
    ),
)


def first_secret(content: bytes | Path, own: tuple[str, ...] = ()) -> tuple[int, str] | None:
    """Return the line and the kind of the first thing in a file that must not leave the machine; None without any.

    Args:
        content: a file's bytes, or the file. Of a binary one that is larger than HEAD and TAIL together these parts
            are searched. The line is that of the text, in a binary file of what is printable in it.
        own: paths of this machine that are no home folder, such as the run's.
    """
    for text in texts(content):
        lowered = lower(text)
        places = (re.search(rf"(?<![\w.-]){re.escape(path)}", text) for path in own)
        found = [(place.start(), HOME) for place in places if place]
        for kind, words, rule in RULES:
            searched = lowered if rule.flags & re.I else text
            matches = (rule.search(text, begin, end) for begin, end in windows(searched, words))
            found += [(match.start(), kind) for match in matches if match]
        for plugin, words in plugins():
            kind = KEY if "private" in plugin.secret_type.lower() else TOKEN
            parts = [text[begin:end] for begin, end in windows(text, words)] if words else [text]
            found += [(text.find(secret), kind) for part in parts for secret in plugin.analyze_string(part)]
        if found:
            place, kind = min(found)
            return text.count("\n", 0, max(place, 0)) + 1, kind
    return None


def windows(text: str, words: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return the parts of a text around its occurrences of any of the words, as (begin, end), in order.

    Parts that overlap are one, up to PART characters.
    """
    places = sorted(place for word in words for place in occurrences(text, word))
    found: list[tuple[int, int]] = []
    for place in places:
        begin, end = max(place - BEFORE, 0), min(place + AFTER, len(text))
        if found and begin <= found[-1][1] and end - found[-1][0] <= PART:
            found[-1] = (found[-1][0], end)
        else:
            found.append((begin, end))
    return found


def occurrences(text: str, word: str) -> Iterator[int]:
    """Yield where a word stands in a text."""
    place = text.find(word)
    while place >= 0:
        yield place
        place = text.find(word, place + 1)


def lower(text: str) -> str:
    """Return a text in small letters, every character where it was."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(one if len(one := character.lower()) == 1 else character for character in text)


def texts(content: bytes | Path) -> Iterator[str]:
    """Yield what is text in a file: all of it, or of a binary file the printable runs, a run a line."""
    data = content if isinstance(content, bytes) else beginning_and_end(content)
    for encoding, mark in MARKS:
        if data.startswith(mark):
            yield from unescaped(data.decode(encoding, errors="replace"))
            return
    if b"\0" not in data:
        yield from unescaped(data.decode("utf-8", errors="replace"))
        return
    marked = data.translate(MARKED)
    for unit, encoding in UNITS.items():
        if found := [data[begin:end].decode(encoding) for begin, end in runs(marked, unit)]:
            yield from unescaped("\n".join(found))


def runs(marked: bytes, unit: bytes) -> Iterator[tuple[int, int]]:
    """Yield where a unit (of MARKED letters) stands RUN times or more, one after the other, as (begin, end)."""
    least = unit * RUN
    begin = marked.find(least)
    while begin >= 0:
        end = begin + len(least)
        while marked.startswith(unit, end):
            end += len(unit)
        yield begin, end
        begin = marked.find(least, end)


def unescaped(text: str) -> Iterator[str]:
    r"""Yield a text, and once more with the slashes that JSON may write as \/ as what they are."""
    yield text
    if r"\/" in text:
        yield text.replace(r"\/", "/")


def beginning_and_end(file: Path) -> bytes:
    """Return the bytes of a file; of a large one its first HEAD and last TAIL ones."""
    with file.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        if size <= HEAD + TAIL:
            return stream.read()
        head = stream.read(HEAD)
        stream.seek(-TAIL, 2)
        return head + b"\n" + stream.read()


@cache
def plugins() -> list[tuple[Any, tuple[str, ...]]]:
    """Return the plugins of detect-secrets that know a key by its form, and their words."""
    needs("detect_secrets")
    found = []
    for place, words in PLUGINS.items():
        module, _, name = place.partition(".")
        found.append((getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), name)(), words))
    return found
