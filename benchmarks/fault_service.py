"""`python -m benchmarks.fault_service`: as `bpt up`, with two workers for tuning jobs that tune a tiny ViT."""

from __future__ import annotations

from bpt_store import up

TUNE_WORKERS = 2


class FaultService(up.Up):
    def _start(self, name: str, environment: dict[str, str]) -> None:
        super()._start(name, {**environment, "BPT_ROLE": "api"})  # nobody predicts here

    def _commands(self) -> dict[str, list[str]]:
        commands = super()._commands()
        tune = ["benchmarks.tiny_worker" if word == "worker.app" else word for word in commands.pop("worker-tune")]
        del commands["worker-batch"]
        for number in range(TUNE_WORKERS):
            named = [word.replace("tune@", f"tune{number}@") for word in tune]
            commands[f"worker-tune-{number}"] = named
        return commands


if __name__ == "__main__":
    up.Up = FaultService  # type: ignore[misc]
    up.main()
