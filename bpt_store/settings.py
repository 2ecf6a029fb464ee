"""Every setting of the service, read from environment variables named BPT_<NAME>."""

from __future__ import annotations

import tempfile
from enum import StrEnum
from functools import lru_cache
from ipaddress import ip_network
from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Role(StrEnum):
    """What an API process answers: `api` never imports torch; `predict` serves predictions; `all` is both."""

    API = "api"
    PREDICT = "predict"
    ALL = "all"


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="BPT_", extra="ignore")

    database_url: SecretStr = Field(description="PostgreSQL as bpt_customer, under row-level security")
    system_database_url: SecretStr = Field(
        description="PostgreSQL as bpt_system: key lookup, claim, sweep, administration"
    )
    owner_database_url: SecretStr | None = Field(None, description="PostgreSQL as bpt_owner; migrations only")
    superuser_database_url: SecretStr | None = Field(
        None, description="PostgreSQL as a superuser; migrations only, to create the three roles and the database"
    )
    redis_url: SecretStr = Field(description="Celery's broker: redis://host:port/0 or redis+socket:///path")
    objects_url: str = Field(description="object storage: file:///directory, s3://bucket/prefix, gs://..., az://...")
    work_directory: Path = Field(
        Path(tempfile.gettempdir()) / "bpt-work", description="where workers keep the files of running jobs"
    )
    weights_directory: Path | None = Field(
        None, description="looked in for <backbone>.safetensors or .pth before the hub is asked"
    )
    allow_noncommercial: bool = Field(False, description="offer backbones whose licence forbids commercial use")

    role: Role = Field(Role.ALL, description="what an API process answers: api, predict or all")
    device: str = Field("auto", description="torch device of workers and predictions; auto takes a GPU if there is one")
    threads: int = Field(0, ge=0, description="CPU threads of a trainer; 0 leaves the choice to torch")
    trainer_precision: str = Field(
        "auto", pattern="^(auto|float32|bf16)$", description="auto is bf16 on GPUs that have it, float32 elsewhere"
    )
    trainer_compile: bool = Field(False, description="run the prompted forward of a trainer through torch.compile")
    trainer_image_bytes: int = Field(
        2 << 30, ge=0, description="host memory for decoded images, per split; the rest is decoded again"
    )
    trainer_kept_bytes: int = Field(
        4 << 30, ge=0, description="device memory for what is kept below the prompts; the rest is computed again"
    )
    batch_part_images: int = Field(
        1024, gt=0, description="images of a batch prediction from one stored part to the next; a crash costs so many"
    )
    tuning_flops_per_second: float = Field(
        5e10, gt=0, description="speed that times are estimated with until jobs of the customer have been measured"
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")

    upload_limit_bytes: int = Field(2 << 30, gt=0, description="largest dataset archive in one request")
    upload_whole_limit_bytes: int = Field(64 << 30, gt=0, description="largest dataset archive in parts")
    upload_stall_seconds: float = Field(30, gt=0, description="an upload that sends nothing for so long is refused")
    upload_expiry_seconds: float = Field(
        3600, gt=0, description="an upload in one request that is not finished after so long is swept"
    )
    upload_parts_expiry_seconds: float = Field(
        86400, gt=0, description="an upload in parts to which nothing came for so long is swept"
    )
    import_urls: str = Field(
        "",
        description="datasets may be imported from below these URLs of object storage, separated by blanks; "
        "`{customer}` stands for the customer's id",
    )
    quota_datasets: int = Field(1000, gt=0, description="datasets of a customer")
    quota_images: int = Field(5_000_000, gt=0, description="images of a customer, in the newest versions")
    quota_bytes: int = Field(1 << 40, gt=0, description="stored bytes of a customer, with all versions and uploads")
    requests_per_minute: int = Field(6000, ge=0, lt=10**15, description="requests of a customer; 0: no limit")
    images_per_minute: int = Field(
        60_000,
        ge=0,
        lt=10**15,
        description="images of a customer that are predicted online, each as often as prompt sets are applied to it; "
        "0: no limit",
    )
    upload_bytes_per_day: int = Field(
        1 << 40, ge=0, lt=10**15, description="bytes that a customer sends in, as datasets or artifacts; 0: no limit"
    )
    rate_limit_patience_seconds: float = Field(
        0.1, gt=0, description="Redis has so long to say what is left of a rate; then the request passes"
    )
    artifact_limit_bytes: int = Field(64 << 20, gt=0, description="largest artifact that is imported")
    images_per_prediction: int = Field(64, gt=0, description="most images in one prediction request")
    image_limit_bytes: int = Field(20 << 20, gt=0, description="largest image in a prediction request")
    predict_json_limit_bytes: int = Field(32 << 20, gt=0, description="largest prediction request in JSON")
    predict_prompt_sets: int = Field(16, gt=0, description="most prompt sets in one prediction request")
    predict_seconds: float = Field(30, gt=0, description="a prediction not made in so long is given up")
    predict_backbones: str = Field(
        "vit_tiny_patch8_64.mae", description="loaded before a process calls itself ready, separated by blanks"
    )
    predict_precision: str = Field(
        "auto", pattern="^(auto|float32|bf16)$", description="auto is bf16 on GPUs that have it, float32 elsewhere"
    )
    predict_batch_rows: int = Field(
        0, ge=0, description="largest batch; a row is an image under one prompt set; 0: 64 on a GPU, 8 on a CPU"
    )
    predict_queue_rows: int = Field(
        4096, gt=0, description="rows that may wait altogether; a customer may hold as many as are free"
    )
    predict_decode_threads: int = Field(4, gt=0, description="threads that decode images")
    predict_device_bytes: int = Field(
        1 << 30, gt=0, description="device memory for the prompt sets of one backbone; the least used make room"
    )
    predict_host_bytes: int = Field(
        4 << 30, ge=0, description="with a GPU, host memory for prompt sets that made room; they come back fast"
    )
    usage_write_seconds: float = Field(
        5, gt=0, description="how often is written down what was predicted online; a kill -9 loses so much of the count"
    )
    bad_image_fraction: float = Field(0.05, ge=0, le=1, description="share of unreadable images a dataset may have")
    queued_jobs_limit: int = Field(100, gt=0, description="most unfinished jobs of one kind of a customer")
    job_checkpoints: int = Field(
        20,
        ge=2,
        description="epochs of a tuning job whose prompt sets are kept: the best, the last, and some between",
    )

    idempotency_hours: float = Field(
        24, gt=0, description="so long an answer is kept to be given again to the same Idempotency-Key"
    )

    lease_seconds: float = Field(20, gt=0, description="a worker silent for so long has lost its job")
    heartbeat_seconds: float = Field(5, gt=0, description="how often a worker renews its lease")
    sweep_seconds: float = Field(2, gt=0, description="pause between two sweeps")
    ring_after_seconds: float = Field(10, gt=0, description="a job unclaimed for so long has its doorbell rung again")
    deaf_seconds: float = Field(
        60, gt=0, description="a worker that hears no doorbell although work has waited for so long ends"
    )
    running_jobs_limit: int = Field(
        0, ge=0, description="most running jobs of one kind of a customer without a limit of his own; 0: no limit"
    )
    retry_backoff_seconds: float = Field(
        2, ge=0, description="pause before a crashed job runs again; doubles each time"
    )
    max_failures: int = Field(3, gt=0, description="a job whose attempts crashed so often fails for good")
    failed_checkpoint_hours: float = Field(
        72, ge=0, description="a tuning job that failed or was cancelled so long ago is tried again from the beginning"
    )
    stall_seconds: float = Field(
        1800, gt=0, description="the process of a job that neither says nor computes anything for so long is killed"
    )
    orphan_hours: float = Field(
        24, ge=0, description="an object so old that no row refers to is deleted, though not before uploads expire"
    )
    stop_patience_seconds: float = Field(20, gt=0, description="time a child process gets to stop before it is killed")
    ingest_cpu_seconds: int = Field(3600, gt=0, description="CPU time limit of one ingest process")
    ingest_memory_bytes: int = Field(4 << 30, gt=0, description="address-space limit of one ingest process")
    ingest_decoders: int = Field(
        0, ge=0, description="processes of an ingest that decode images; 0: as many as cores, 8 at most"
    )
    decode_cpu_seconds: float = Field(20, gt=0, description="CPU time limit of decoding one image in an ingest")
    decode_memory_bytes: int = Field(1 << 30, gt=0, description="address-space limit of a process that decodes images")
    events_poll_seconds: float = Field(0.5, gt=0, description="how often a live event stream looks for news")

    webhook_insecure: bool = Field(False, description="webhooks may go to http:// as well: for development only")
    webhook_allowed_networks: str = Field(
        "",
        description="networks that webhooks may go to although they are not public, such as `10.1.0.0/16`, separated "
        "by blanks",
    )
    webhook_timeout_seconds: float = Field(15, gt=0, description="a webhook not answered in so long has failed")
    webhook_retry_seconds: str = Field(
        "5 300 1800 7200 18000 36000 50400 72000 86400",
        pattern=r"^\d+(\.\d+)?( \d+(\.\d+)?)*$",
        description="pauses before a webhook that failed is tried again, one after the other; then it is given up",
    )
    webhook_failing_days: float = Field(
        5, gt=0, description="a webhook endpoint for which all has failed for so long is disabled"
    )
    webhook_days: float = Field(30, gt=0, description="so long webhook events are kept, to be looked at and replayed")
    webhook_poll_seconds: float = Field(1, gt=0, description="how often is looked for webhooks to deliver")

    @field_validator("webhook_allowed_networks")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        for network in value.split():
            ip_network(network)
        return value


@lru_cache
def load_settings() -> Settings:
    """The settings of this process; pydantic's ValidationError names what is missing."""
    return Settings()
