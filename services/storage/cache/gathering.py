"""Asking together: what callers want while one question is under way is asked in the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

QuestionT = TypeVar("QuestionT")
AnswerT = TypeVar("AnswerT")

TOGETHER_MAX: Final = 256
"""Questions asked at once."""


class Gathering(Generic[QuestionT, AnswerT]):
    """One question at a time to whoever answers, for any number of callers. A question is sent after its caller asked, never before."""

    def __init__(self, ask: Callable[[Sequence[QuestionT]], Awaitable[Sequence[AnswerT]]], name: str) -> None:
        """`ask` returns an answer for each question; what it raises, all who asked get."""
        self._ask = ask
        self._name = name
        self._waiting: list[tuple[QuestionT, asyncio.Future[AnswerT]]] = []
        self._task: asyncio.Task[None] | None = None

    async def answer(self, question: QuestionT) -> AnswerT:
        """The answer. A caller that is cancelled disturbs no other one."""
        future: asyncio.Future[AnswerT] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=self._name)
        return await future

    async def close(self) -> None:
        """Answer nobody any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()

    async def _run(self) -> None:
        """Ask until nobody waits."""
        while self._waiting:
            batch, self._waiting = self._waiting[:TOGETHER_MAX], self._waiting[TOGETHER_MAX:]
            try:
                answers = await self._ask([question for question, _ in batch])
            except asyncio.CancelledError:
                for _, future in batch:
                    future.cancel()
                raise
            except Exception as error:  # noqa: BLE001  # it belongs to those who asked
                _refuse(batch, error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)


def _refuse(batch: Sequence[tuple[QuestionT, asyncio.Future[AnswerT]]], error: Exception) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
