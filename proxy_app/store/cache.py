"""Show documents in Redis: shared by all workers and the refresher, bounded in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import redis

from proxy_app.domain import Digest, ShowEntry, ShowKey
from proxy_app.store.redis import BIG_BYTES, RedisGate, Script

_PUT, _GET, _DROP = Script("put_show"), Script("get_show"), Script("drop_show")
_RENEW, _RELEASE = Script("renew_flight"), Script("release_flight")


# How long the body of a big document may wait for its document.
UNNAMED_S = 60


class ShowCache:
    """The shared layer of show documents, and the tokens of those that are being fetched.

    All keys carry the prefix in braces, so that one script's keys share a slot of a Redis Cluster.

    Raises:
        CacheAway: from every method.
    """

    def __init__(self, gate: RedisGate, prefix: str, budget_bytes: int) -> None:
        self._gate = gate
        self._budget = budget_bytes
        self._root = "{%s}:show" % prefix
        self._lru = f"{self._root}:lru"
        self._sizes = f"{self._root}:sizes"
        self._asked = f"{self._root}:asked"
        self._names = f"{self._root}:names"
        self._hits = f"{self._root}:hits"

    def get(self, key: ShowKey) -> ShowEntry | None:
        document = self._document(key)
        found = self._gate.call(_GET, [document, self._lru], [])
        if not found:
            return None
        digest, stored_at, size, body = found
        if body is None:
            body = self._gate.run(lambda client: client.get(f"{document}:body"), big=True)
        # The two halves of a big document are written apart: one that does not fit the other is no document.
        if body is None or len(body) != int(size):
            return None
        return ShowEntry(Digest(digest.decode()), float(stored_at), body)

    def digests(self, keys: list[ShowKey]) -> list[Digest | None]:
        """The digests of many stored documents, in one call."""

        def read(client: redis.Redis) -> list[bytes | None]:
            with client.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.hget(self._document(key), "d")
                return list(pipe.execute())

        found = self._gate.run(read) if keys else []
        return [None if digest is None else Digest(digest.decode()) for digest in found]

    def put(self, key: ShowKey, entry: ShowEntry) -> None:
        document = self._document(key)
        size = len(entry.body)
        big = size > BIG_BYTES
        if big:
            # Until its document names it, the body is nobody's and counts in no budget.
            self._gate.run(lambda client: client.set(f"{document}:body", entry.body, ex=UNNAMED_S), big=True)
        keys = [document, f"{document}:body", self._lru, self._sizes]
        args = [entry.digest, repr(entry.stored_at), size, b"" if big else entry.body, self._budget]
        self._gate.call(_PUT, keys, args)

    def drop(self, canonicals: Iterable[str]) -> int:
        """Drop the documents of local models that nobody holds any more; returns how many."""
        keys = [ShowKey("local", canonical, verbose) for canonical in canonicals for verbose in (False, True)]
        gone = [self._document(key) for key in keys]
        if keys:
            self._gate.run(lambda client: client.hdel(self._hits, *map(str, keys)))
        return int(self._gate.call(_DROP, [self._lru, self._sizes], gone)) if gone else 0

    def size_bytes(self) -> tuple[int, int]:
        """(documents, bytes) in the cache."""

        def read(client: redis.Redis) -> list[object]:
            with client.pipeline(transaction=False) as pipe:
                pipe.zcard(self._lru)
                pipe.hget(self._sizes, "total")
                return list(pipe.execute())

        count, total = self._gate.run(read)
        return int(count), int(total or 0)

    # -- who asked for what ------------------------------------------------------------------------

    def note_asked(self, asked: dict[str, tuple[str, float]]) -> None:
        """Note which documents were asked for: key -> (name as it was asked, UTC seconds)."""

        def write(client: redis.Redis) -> None:
            with client.pipeline(transaction=False) as pipe:
                pipe.zadd(self._asked, {key: at for key, (_, at) in asked.items()})
                pipe.hset(self._names, mapping={key: name for key, (name, _) in asked.items()})
                pipe.execute()

        if asked:
            self._gate.run(write)

    def take_asked(self) -> dict[str, tuple[str, float]]:
        """Read what was noted, and clear it: the refresher moves it into the registry."""

        def take(client: redis.Redis) -> list[object]:
            with client.pipeline() as pipe:
                pipe.zrange(self._asked, 0, -1, withscores=True)
                pipe.hgetall(self._names)
                pipe.delete(self._asked, self._names)
                return list(pipe.execute())

        scored, names, _ = self._gate.run(take)
        return {key.decode(): (names[key].decode(), float(at)) for key, at in scored if key in names}

    # -- how often they were served ----------------------------------------------------------------

    def note_hits(self, hits: Mapping[str, int]) -> None:
        """Count how often documents were served, by their keys."""

        def write(client: redis.Redis) -> None:
            with client.pipeline(transaction=False) as pipe:
                for key, count in hits.items():
                    pipe.hincrby(self._hits, key, count)
                pipe.execute()

        if hits:
            self._gate.run(write)

    def hits(self, keys: Sequence[ShowKey]) -> list[int]:
        """How often each was served since its model was first seen."""
        names = [str(key) for key in keys]
        found = self._gate.run(lambda client: client.hmget(self._hits, names)) if names else []
        return [int(count or 0) for count in found]

    # -- one fetch at a time -----------------------------------------------------------------------

    def take_flight(self, key: ShowKey, token: str, ttl_ms: int) -> bool:
        """Become the one who fetches this document; False while somebody else does."""
        return self._take(self._flight(key), token, ttl_ms)

    def renew_flight(self, key: ShowKey, token: str, ttl_ms: int) -> bool:
        return bool(self._gate.call(_RENEW, [self._flight(key)], [token, ttl_ms]))

    def release_flight(self, key: ShowKey, token: str) -> None:
        self._gate.call(_RELEASE, [self._flight(key)], [token])

    def take_cooldown(self, key: ShowKey, ttl_ms: int) -> bool:
        """Become the one who refreshes this document in the coming `ttl_ms`; False where somebody did."""
        return ttl_ms == 0 or self._take(f"{self._root}:cooldown:{key}", "1", ttl_ms)

    def is_flying(self, key: ShowKey) -> bool:
        return bool(self._gate.run(lambda client: client.exists(self._flight(key))))

    # -- inside ------------------------------------------------------------------------------------

    def _document(self, key: ShowKey) -> str:
        return f"{self._root}:doc:{key}"

    def _flight(self, key: ShowKey) -> str:
        return f"{self._root}:flight:{key}"

    def _take(self, name: str, token: str, ttl_ms: int) -> bool:
        return bool(self._gate.run(lambda client: client.set(name, token, nx=True, px=ttl_ms)))
