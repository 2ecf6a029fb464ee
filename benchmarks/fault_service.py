"""`python -m benchmarks.fault_service`: as `bpt up`, with two workers for tuning jobs that tune a tiny ViT.

The clock of the one is an hour fast, that of the other an hour slow."""

from __future__ import annotations

from bpt_store import up

SKEWS = (3600, -3600)  # seconds, of each worker for tuning jobs


class FaultService(up.Up):
    def _start(self, name: str, environment: dict[str, str]) -> None:
        more = {"BPT_ROLE": "api"}  # nobody predicts here
        if name.startswith("worker-tune-"):
            more["SKEW_SECONDS"] = str(SKEWS[int(name.removeprefix("worker-tune-"))])
        super()._start(name, {**environment, **more})

    def _commands(self) -> dict[str, list[str]]:
        commands = super()._commands()
        tune = ["benchmarks.tiny_worker" if word == "worker.app" else word for word in commands.pop("worker-tune")]
        del commands["worker-batch"]
        for number in range(len(SKEWS)):
            named = [word.replace("tune@", f"tune{number}@") for word in tune]
            commands[f"worker-tune-{number}"] = named
        return commands


if __name__ == "__main__":
    up.Up = FaultService  # type: ignore[misc]
    up.main()
