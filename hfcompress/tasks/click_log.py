"""A generated click log whose truth is known: popularity by a power law, drift, cold ids, effects of single ids.

Nobody's clicks: everything here comes out of a random generator, and every report that uses it says so. What a request
is: a user in a context (one of 32: a device and a part of the day) is shown a slate of items, and clicks any of them
or none; a click may convert. The logit of a click is

    base + daily drift + <taste of the user, style of the item>      (low rank)
         + quality of the item + the category's season               (one number an id)
         + how *this* item does in *this* context                    (single ids: independent signs, of full rank)
         + how *this* user likes *this* kind of category             (the same for users)
         - the user's price sensitivity x price

The two terms of single ids are drawn independently for every pair, so that their matrix has a flat spectrum: a
factorization of a smaller rank must lose a share of them, and ids that share a row (hashing) disturb each other. Ids
are numbered by birth: those that appear only after the training period are beyond every table that was trained.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

CONTEXTS = 32
KINDS = 16  # of categories, as users see them
TASTES = 6
SPLITS = ("train", "validation", "test", "live")
DAYS = {"train": (0, 21), "validation": (21, 22), "test": (22, 25), "live": (25, 30)}
LAST = 30


@dataclass(frozen=True)
class ClickLog:
    """Rows of a click log, one an item shown; every array is [rows]. Rows of one request lie together."""

    time: Array
    """Days since the log began, float32."""
    request: Array
    user: Array
    item: Array
    category: Array
    context: Array
    price: Array
    """Standardised, float32."""
    click: Array
    """0 or 1, int8."""
    conversion: Array
    """0 or 1, int8; 1 only where there was a click."""

    def __len__(self) -> int:
        return len(self.click)

    def rows(self, which: "slice | Array") -> "ClickLog":
        """Some of the rows."""
        return ClickLog(*(getattr(self, field.name)[which] for field in fields(self)))


@dataclass(frozen=True)
class World:
    """What is true of every id; drawn once from a seed. See the module's text for the terms."""

    users: int
    items: int
    categories: int
    seed: int = 0

    def __post_init__(self) -> None:
        random = np.random.default_rng([self.seed, 0])

        def draw(spread: float, *shape: int) -> Array:
            return random.normal(0.0, spread, shape).astype(np.float32)

        put = object.__setattr__  # the dataclass is frozen: these are what its numbers stand for
        put(self, "taste", draw(0.55, self.users, TASTES))
        put(self, "style", draw(0.55, self.items, TASTES))
        put(self, "quality", draw(0.6, self.items))
        put(self, "category", random.integers(0, self.categories, self.items))
        put(self, "season", draw(0.35, self.categories))
        put(self, "phase", random.uniform(0, 2 * np.pi, self.categories).astype(np.float32))
        put(self, "kind", random.integers(0, KINDS, self.categories))
        put(self, "price", draw(1.0, self.items))
        put(self, "thrift", np.abs(draw(0.25, self.users)))
        put(self, "single_item", single(random, self.items, CONTEXTS, share=0.5, size=1.0))
        put(self, "single_user", single(random, self.users, KINDS, share=0.3, size=0.8))
        put(self, "daily", draw(0.06, LAST + 1).cumsum().astype(np.float32))
        put(self, "popular", popularity(random, self.items, 1.1))
        put(self, "active", popularity(random, self.users, 0.9))
        put(self, "trend", draw(0.04, self.items))
        put(self, "item_birth", births(self.items, share=0.12))
        put(self, "user_birth", births(self.users, share=0.15))

    def probability(self, log: ClickLog) -> Array:
        """The true probability of a click of every row, [rows] float32."""
        w = vars(self)
        user, item, category = log.user, log.item, log.category
        season = w["season"][category] * np.sin(2 * np.pi * log.time / 14 + w["phase"][category])
        logit = (
            -1.8
            + w["daily"][log.time.astype(int)]
            + np.einsum("nk,nk->n", w["taste"][user], w["style"][item])
            + w["quality"][item]
            + season
            + w["single_item"][item, log.context]
            + w["single_user"][user, w["kind"][category]]
            - w["thrift"][user] * log.price
        )
        return np.asarray(1 / (1 + np.exp(-logit)), dtype=np.float32)

    def requests(self, split: str, count: int, slate: int) -> ClickLog:
        """So many requests of a split's days, each with a slate of items, clicked by what is true."""
        w, random = vars(self), np.random.default_rng([self.seed, 1 + SPLITS.index(split)])
        first, last = DAYS[split]
        day = np.sort(random.integers(first, last, count))
        user, item = np.empty(count, np.int64), np.empty((count, slate), np.int64)
        for today in range(first, last):
            mine = np.flatnonzero(day == today)
            active = w["active"] * (w["user_birth"] <= today)
            popular = w["popular"] * np.exp(w["trend"] * today) * (w["item_birth"] <= today)
            user[mine] = choose(random, active, len(mine))
            item[mine] = choose(random, popular, slate * len(mine)).reshape(-1, slate)
        flat = item.ravel()
        log = ClickLog(
            time=np.repeat(np.sort(day + random.random(count)).astype(np.float32), slate),
            request=np.repeat(np.arange(count), slate),
            user=np.repeat(user, slate),
            item=flat,
            category=w["category"][flat],
            context=np.repeat(random.integers(0, CONTEXTS, count), slate),
            price=w["price"][flat],
            click=np.zeros(len(flat), np.int8),
            conversion=np.zeros(len(flat), np.int8),
        )
        log.click[:] = random.random(len(flat)) < self.probability(log)
        buys = 1 / (1 + np.exp(2.0 + 0.5 * log.price - w["quality"][flat]))
        log.conversion[:] = log.click * (random.random(len(flat)) < buys)
        return log


def single(random: np.random.Generator, ids: int, contexts: int, share: float, size: float) -> Array:
    """Effects of `share` of the ids: independent signs in every context, [ids, contexts] float32."""
    signs = random.choice(np.array([-size, size], np.float32), (ids, contexts))
    return np.asarray(signs * (random.random(ids) < share)[:, None].astype(np.float32))


def popularity(random: np.random.Generator, ids: int, exponent: float) -> Array:
    """A power law over the ids in random order: weight 1 / rank^exponent, [ids]."""
    return np.asarray(1.0 / random.permutation(np.arange(1, ids + 1)) ** exponent)


def births(ids: int, share: float) -> Array:
    """The day from which an id is there, [ids]: 0 for most; the last `share` of the numbers come one after another."""
    old = round(ids * (1 - share))
    return np.concatenate([np.zeros(old), np.linspace(0, LAST, ids - old)])


def choose(random: np.random.Generator, weight: Array, count: int) -> Array:
    """So many ids, each with a probability proportional to its weight."""
    total = np.cumsum(weight)
    return np.asarray(np.searchsorted(total, random.random(count) * total[-1], side="right"))
