"""Who is in: sessions, kept in memory and known by a cookie."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

SESSION_S = 7 * 24 * 3600.0
"""How long a session lasts."""
MOST_SESSIONS = 256
"""How many there are at a time; the oldest gives way."""


class Sessions:
    """
    Sessions that last for a week, and no longer than this object.

    Args:
        cookie: The name of the cookie that holds one.
        clock: Seconds that never go back.
    """

    def __init__(self, cookie: str, clock: Callable[[], float]) -> None:
        self._cookie = cookie
        self._clock = clock
        self._began: OrderedDict[str, float] = OrderedDict()  # the oldest first
        self._changing = threading.Lock()

    def begin(self) -> str:
        """Begin a session, and return what a browser is to keep, as it stands in `Set-Cookie`."""
        session = secrets.token_urlsafe(32)
        with self._changing:
            self._began[session] = self._clock()
            while len(self._began) > MOST_SESSIONS:
                self._began.popitem(last=False)
        return f"{self._cookie}={session}"

    def hold(self, cookies: str) -> bool:
        """Return whether a session is among the *cookies* that a browser sent."""
        now = self._clock()
        # 256 random bits: no timing finds them
        return any(now - self._began.get(session, float("-inf")) < SESSION_S for session in self._among(cookies))

    def end(self, cookies: str) -> str:
        """End the sessions among the *cookies* that a browser sent; return what makes it forget them."""
        with self._changing:
            for session in self._among(cookies):
                self._began.pop(session, None)
        return f"{self._cookie}=; Max-Age=0"

    def _among(self, cookies: str) -> Iterator[str]:
        """
        Yield every value under our name.

        Read by hand: other servers of this host, on any port, put what they like beside ours and under its name, and
        `http.cookies` drops everything at the first thing that it does not understand.
        """
        for pair in cookies.split(";"):
            name, _, value = pair.partition("=")
            if name.strip() == self._cookie:
                yield value.strip()
