"""Routes, found by the resource that a path begins with: to try a hundred of them one after the other costs as much as
a query.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send


class ByResource(BaseRoute):
    """Stands before the routes that it knows. What it does not find is left to them: it is found there, or nowhere."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        self._routes: defaultdict[str, list[APIRoute]] = defaultdict(list)
        for route in routes:
            if isinstance(route, APIRoute):
                self._routes[_resource(route.path)].append(route)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        for route in self._routes.get(_resource(scope.get("path", "")), ()):
            match, found = route.matches(scope)
            if match is Match.FULL:
                return match, found
        return Match.NONE, {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await scope["route"].handle(scope, receive, send)


def _resource(path: str) -> str:
    """/v1/prompt-sets/birds/aliases -> v1/prompt-sets"""
    return "/".join(path.split("/", 3)[1:3])
