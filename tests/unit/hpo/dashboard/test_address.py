from __future__ import annotations

import pytest

from hpo.dashboard.address import Address


@pytest.mark.parametrize(
    ("text", "url", "encrypted"),
    [
        ("https://hpo.lab.example", "https://hpo.lab.example/", True),
        ("https://lab.example/hpo/", "https://lab.example/hpo/", True),
        ("http://lab.example:8443/a/b", "http://lab.example:8443/a/b/", False),
        ("HTTPS://Lab.Example:443/hpo", "https://lab.example/hpo/", True),  # as a browser writes it in Origin
        ("http://[::1]:8080", "http://[::1]:8080/", False),
        ("http://[0:0::0:1]:8080", "http://[::1]:8080/", False),
        ("https://xn--mnchen-3ya.de/hpo", "https://xn--mnchen-3ya.de/hpo/", True),
        ("http://gpu_1.lab.example", "http://gpu_1.lab.example/", False),
    ],
)
def test_what_a_person_writes_is_what_a_browser_sees(text: str, url: str, encrypted: bool) -> None:
    """Slashes at the end, capitals and the scheme's own port make no difference."""
    address = Address.parse(text)
    assert address.url == url
    assert address.encrypted is encrypted


@pytest.mark.parametrize(
    "text",
    [
        "lab.example/hpo",
        "ftp://lab.example",
        "https://",
        "https://lab.example:x",
        "https://lab.example:99999",
        "https://lab.example:0/",
        'https://a"b/',
        "https://exa mple/",
        "https://h<script>/x",
        "https://münchen.de/",
        "https://[::1%25eth0]/",
        "https://user:secret@lab.example",
        "https://lab.example/?a=b",
        "https://lab.example/#x",
        "https://lab.example/a b",
        'https://lab.example/"><script>',
        "https://lab.example/`${x}",
        "https://lab.example/../x",
        "https://lab.example/api",
        "https://lab.example/logout",
        "https://lab.example/dashboard/hpo",
    ],
)
def test_what_can_be_no_address_is_refused(text: str) -> None:
    """Also a path that would change what the pages' script says, or one of the dashboard's own; a password is not repeated."""
    with pytest.raises(ValueError, match=r"address|path") as refused:
        Address.parse(text)
    assert "secret" not in str(refused.value)


def test_a_prefix_may_be_there_or_not() -> None:
    """Some proxies leave it, others take it away; a longer word is another path."""
    address = Address.parse("https://lab.example/hpo")
    assert [address.inside(path) for path in ("/hpo", "/hpo/", "/hpo/api/meta", "/api/meta", "/hpological")] == [
        "/",
        "/",
        "/api/meta",
        "/api/meta",
        "/hpological",
    ]


def test_what_listens_everywhere_is_shown_where_a_browser_finds_it() -> None:
    """Nobody can open 0.0.0.0."""
    assert Address.listening("0.0.0.0", 80).url == "http://127.0.0.1:80/"  # noqa: S104 - shown, not listened on
    assert Address.listening("::", 80).url == "http://[::1]:80/"
    assert Address.listening("gpu1", 80).url == "http://gpu1:80/"
