"""Nothing that opens somebody's account, or tells where on a machine a run was made, is found in what is pushed.

The forms are put together here, so that no scanner takes this file for a leak; none of them was ever valid.
"""

import json
from pathlib import Path

import pytest

from hfcompress.errors import UserError
from hfcompress.hub import secret_search
from hfcompress.hub.release import Release, refuse_secrets
from hfcompress.hub.secret_search import HOME, KEY, PASSWORD, TOKEN, first_secret

LETTERS = "aB3dE5gH7jK9mN1pQ2sT4vW6yZ8bC0fG" * 4
HEX = "0123456789abcdef" * 8
DIGITS = "123456789012"


def pem(kind: str) -> str:
    return f"-----BEGIN {kind}PRIVATE KEY-----\nMIIEow{LETTERS[:58]}\n-----END {kind}PRIVATE KEY-----"


TOKENS = {
    "hugging face": "hf" + "_" + LETTERS[:34],
    "hugging face organization": "api" + "_org_" + LETTERS[:34],
    "github classic": "gh" + "p_" + LETTERS[:36],
    "github oauth": "gh" + "o_" + LETTERS[:36],
    "github app": "gh" + "s_" + LETTERS[:36],
    "github refresh": "gh" + "r_" + LETTERS[:36],
    "github fine-grained": "github" + "_pat_" + LETTERS[:22] + "_" + LETTERS[:59],
    "gitlab": "gl" + "pat-" + LETTERS[:20],
    "gitlab runner": "gl" + "rt-" + LETTERS[:20],
    "openai": "sk" + "-" + LETTERS[:48],
    "openai legacy": "sk" + "-" + LETTERS[:20] + "T3Blbk" + "FJ" + LETTERS[:20],
    "openai project": "sk" + "-proj-" + LETTERS[:40] + "_" + LETTERS[:20],
    "openai service": "sk" + "-svcacct-" + LETTERS[:60],
    "anthropic": "sk" + "-ant-api03-" + LETTERS[:80] + "-AA",
    "openrouter": "sk" + "-or-v1-" + HEX[:64],
    "aws key id": "AK" + "IA" + "QRSTUVWX23456789"[:16],
    "aws session key id": "AS" + "IA" + "QRSTUVWX23456789"[:16],
    "aws secret in a file": "aws_secret" + "_access_key = " + LETTERS[:38] + "/+",
    "aws secret in JSON": '"aws_secret' + '_access_key": "' + LETTERS[:40] + '"',
    "aws secret in an environment": "AWS_SECRET" + "_ACCESS_KEY=" + LETTERS[:40],
    "google api": "AI" + "za" + LETTERS[:35],
    "google oauth": "ya" + "29." + LETTERS[:60],
    "google client": "GOC" + "SPX-" + LETTERS[:28],
    "slack bot": "xo" + "xb-" + DIGITS + "-" + DIGITS + "-" + LETTERS[:24],
    "slack user": "xo" + "xp-" + DIGITS + "-" + DIGITS + "-" + LETTERS[:24],
    "slack app": "xa" + "pp-1-A0" + DIGITS[:9] + "-" + DIGITS + "-" + HEX[:64],
    "slack webhook": "https://hooks.slack" + ".com/services/T0" + DIGITS[:9] + "/B0" + DIGITS[:9] + "/" + LETTERS[:24],
    "discord webhook": "https://discord" + ".com/api/webhooks/" + DIGITS + "345678/" + LETTERS[:68],
    "discord bot": "M" + LETTERS[:23] + "." + LETTERS[:6] + "." + LETTERS[:27],
    "telegram": DIGITS[:9] + ":" + "AA" + LETTERS[:33],
    "json web token": "ey" + "JhbGciOiJIUzI1NiJ9." + "ey" + "JzdWIiOiIxMjM0In0." + LETTERS[:43],
    "npm": "np" + "m_" + LETTERS[:36],
    "npm settings": "//registry.example/:_auth" + "Token=" + "npm_" + LETTERS[:36],
    "docker": "dckr" + "_pat_" + LETTERS[:27],
    "docker settings": '{"auths": {"registry.example": {"au' + 'th": "' + "dXNlcjpw" + 'YXNzd29yZA=="}}}',
    "pypi": "py" + "pi-" + "AgEIcHlwaS5vcmc" + LETTERS[:80],
    "stripe": "sk" + "_live_" + LETTERS[:24],
    "stripe restricted": "rk" + "_live_" + LETTERS[:24],
    "stripe webhook": "wh" + "sec_" + LETTERS[:32],
    "azure storage": "DefaultEndpointsProtocol=https;AccountName=x;Account" + "Key=" + (LETTERS * 2)[:86] + "==",
    "azure service bus": "Endpoint=sb://x.example/;SharedAccess" + "Key=" + LETTERS[:43] + "=",
    "azure sas": "https://x.blob.example/c?sv=2022-11-02&" + "sig=" + LETTERS[:43] + "%3D",
    "sendgrid": "SG" + "." + LETTERS[:22] + "." + LETTERS[:43],
    "twilio": "SK" + HEX[:32],
    "mailchimp": HEX[:32] + "-us" + "12",
    "shopify": "shp" + "at_" + HEX[:32],
    "square": "sq0" + "csp-" + LETTERS[:43],
    "digitalocean": "dop" + "_v1_" + HEX[:64],
    "databricks": "da" + "pi" + HEX[:32],
    "vault": "hv" + "s." + LETTERS[:90],
    "terraform": LETTERS[:14] + ".atlas" + "v1." + LETTERS[:60],
    "replicate": "r8" + "_" + LETTERS[:37],
    "groq": "gs" + "k_" + LETTERS[:52],
    "xai": "xa" + "i-" + LETTERS[:80],
    "nvidia": "nv" + "api-" + LETTERS[:64],
    "airtable": "pa" + "t" + LETTERS[:14] + "." + HEX[:64],
    "alibaba": "LT" + "AI" + LETTERS[:20],
    "grafana": "gl" + "sa_" + LETTERS[:32] + "_" + HEX[:8],
    "linear": "lin" + "_api_" + LETTERS[:40],
    "kaggle.json": '{"user' + 'name": "me", "key": "' + HEX[:32] + '"}',
    "a header": "Authorization: Bea" + "rer " + LETTERS[:40],
    "basic header": "authorization: Ba" + "sic " + LETTERS[:24] + "==",
    "wandb": "WANDB_API" + "_KEY=" + HEX[:40],
    "any api key": 'api' + '_key: "' + LETTERS[:32] + '"',
    "client secret": '"client' + '_secret": "' + LETTERS[:32] + '"',
}  # fmt: skip
KEYS = {
    "rsa": pem("RSA "),
    "pkcs8": pem(""),
    "encrypted": pem("ENCRYPTED "),
    "ec": pem("EC "),
    "openssh": pem("OPENSSH "),
    "pgp": "-----BEGIN PGP " + "PRIVATE KEY BLOCK-----",
    "in JSON": json.dumps({"private" + "_key": pem("")}),
    "putty": "PuTTY-User-" + "Key-File-3: ssh-ed25519",
    "age": "AGE-SECRET-" + "KEY-1" + "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L" * 2,
}
PASSWORDS = {
    "postgres": "postgres" + "://user:s3cr" + "et@db.example:5432/name",
    "mysql": "mysql+pymysql" + "://root:t0or" + "@127.0.0.1/x",
    "mongodb": "mongodb+srv" + "://me:pa55" + "@cluster0.example/?x=1",
    "redis without a user": "redis" + "://:pa55" + "@cache.example:6379/0",
    "amqp": "amqps" + "://u:p" + "@broker.example/v",
    "a repository": "https" + "://me:" + LETTERS[:20] + "@git.example/me/x.git",
    "a token as user": "https" + "://oauth2:" + LETTERS[:20] + "@git.example/me/x.git",
    "odbc": "Server=db.example;Database=x;Uid=me;P" + "wd=s3cret;",
    "jdbc": "jdbc:postgresql://db.example/x?user=me&pass" + "word=s3cret",
    "yaml": "pass" + "word: hunter2hunter2",
    ".netrc": "machine git.example login me pass" + "word s3cret",
    ".netrc in lines": "machine git.example\n  login me\n  pass" + "word s3cret",
    ".pgpass": "db.example:54" + "32:name:me:s3cret",
}
HOMES = {
    "linux": "/home/" + "somebody/models",
    "linux behind a colon": "PATH=/usr/bin:/home/" + "somebody/bin",
    "a second disk": "/home2/" + "somebody/models",
    "a network": "/net/home/" + "somebody/models",
    "macOS": "/Users/" + "somebody/Library",
    "windows": "C:\\Users\\" + "somebody\\models",
    "windows in JSON": json.dumps("C:\\Users\\" + "somebody\\models"),
    "windows with slashes": "D:/Users/" + "somebody/models",
    "windows, old": "C:\\Documents and Settings\\" + "somebody",
    "windows under linux": "/mnt/c/Users/" + "somebody",
    "root": "/root/" + "models",
    "a cluster": "/scratch/" + "somebody/x",
    "a url": "file:///home/" + "somebody/x",
    "slashes escaped": '"\\/home\\/' + 'somebody\\/x"',
    "macOS temporary": "/private/var/folders/zz/" + "zyxvpxvq6csfxvn",
}
EVERY = [(name, text, kind) for kind, forms in ((TOKEN, TOKENS), (KEY, KEYS), (PASSWORD, PASSWORDS), (HOME, HOMES))
         for name, text in forms.items()]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "kind"), EVERY, ids=[f"{kind}: {name}" for name, _, kind in EVERY])
def test_every_form_is_found_with_its_line(name: str, text: str, kind: str) -> None:
    found = first_secret(f'first line\n{{"note": 1}}\nhere {text} end\n'.encode())
    assert found is not None
    assert found[0] == 3 or (found[0] == 4 and "\n" in text)
    if name not in ("a header", "in JSON"):
        assert found[1] in (kind, TOKEN if kind == PASSWORD else kind)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_every_form_is_found_in_every_encoding_and_in_binary_files(encoding: str) -> None:
    missed = []
    for name, text, _ in EVERY:
        content = f"a line before\n{text}\nand one behind".encode(encoding)
        binary = bytes(range(128, 256)) * 20 + b"\0" + content + b"\0\xff" * 20
        missed += [name for found in (content, binary) if first_secret(found) is None]
    assert not missed


ORDINARY = [
    "risk-allocation-and-indemnification-clauses in desk-reference-manual-for-everybody-in-the-office",
    'bos_token: "<s>", eos_token_id: 2, sep_token: [SEP], "clean_up_tokenization_spaces": false',
    f'"sha256": "{HEX[:64]}", "key": "{HEX[:16]}", "model": "teacher-fc64f9a3a08f2b3d"',
    "https://example.com/home/index.html and http://www.example.org/Users/guide, src/home/page.tsx",
    "See https://github.com/org/name/blob/main/README.md#L10 or mail somebody@example.com; 12:30:45 @noon",
    "the password must be at least 8 characters; passwords are hashed. Token: a piece of a word",
    '"##AKIA", "sk", "hf_", "ghp_", "xox", "eyJ", "AIza", "-----BEGIN", "PRIVATE"',
    "api_key: ${API_KEY}, password=<password>, client_secret: os.environ['X'], access_token=None, token: xxxx",
    "transformers==4.57.6 torch@2.13.0 https://example.org/index/ key-value-cache-of-attention",
    "postgres://db.example:5432/name redis://localhost:6379 http://127.0.0.1:8000/@vite/client",
]


@pytest.mark.parametrize("text", ORDINARY, ids=range(len(ORDINARY)))
def test_ordinary_text_is_not_taken_for_a_secret(text: str) -> None:
    assert first_secret(text.encode()) is None
    assert first_secret(text.encode("utf-16")) is None


def test_large_binary_files_are_searched_at_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_search, "HEAD", 2000)
    monkeypatch.setattr(secret_search, "TAIL", 1000)
    file = tmp_path / "model.safetensors"
    for before, after, found in ((0, 10_000, True), (10_000, 0, True), (5000, 5000, False)):
        file.write_bytes(b"\0\xff" * before + TOKENS["github classic"].encode() + b"\0\xff" * after)
        assert (first_secret(file) is not None) is found


def test_a_release_names_the_file_and_the_kind_and_not_the_secret(tmp_path: Path) -> None:
    secret = TOKENS["anthropic"]
    (tmp_path / "config.json").write_text(f'{{\n"note": "{secret}"}}')
    found = Release({"config.json": tmp_path / "config.json"}, {"README.md": b"fine"})
    with pytest.raises(UserError, match=r"^config\.json, line 2, holds a token") as refusal:
        refuse_secrets(found, tmp_path)
    assert secret not in str(refusal.value)
    own = Release({}, {"report.json": f"in {tmp_path}/x".encode()})
    with pytest.raises(UserError, match="a path of this machine"):
        refuse_secrets(own, tmp_path)


def test_what_the_project_itself_ships_is_clean() -> None:
    root = Path(__file__).parents[2]
    patterns = ("model_cards/*/*", "recipes/assets/*/*", "docs/**/*.md")
    files = [file for pattern in patterns for file in root.glob(pattern)]
    assert len(files) > 20
    assert [file.name for file in files if first_secret(file)] == []


def test_parts_that_are_searched_are_short_however_often_a_word_stands_there() -> None:
    """Some rules take the square of a part's length: a megabyte of "eyJeyJeyJ" in one part took hours."""
    text = "eyJ" * 20_000
    parts = secret_search.windows(text, ("eyJ",))
    assert max(end - begin for begin, end in parts) <= secret_search.PART
    for place in range(0, len(text), 3):
        begin, end = max(place - secret_search.BEFORE, 0), min(place + secret_search.AFTER, len(text))
        assert any(one <= begin and end <= other for one, other in parts), place  # nothing is missed at a seam
        if place > 9_000:
            break
