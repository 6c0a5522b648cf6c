"""What a run leaves behind: sections of the settings about models, samples and logs. Torch-free."""

from typing import Literal

from pydantic import Field

from engine.setting_types import (
    LogLevel,
    SamplerName,
    SaveFormat,
    SavePrecision,
    Section,
    Strings,
    TrackerName,
    path_hint,
    secret_hint,
)


class SavingSettings(Section):
    """Where the run goes, and when and how models are saved."""

    output_dir: str = Field("", json_schema_extra=path_hint("output"))
    """The run's folder: models, samples, events and log."""
    output_name: str = Field("last", min_length=1, max_length=100)
    """File name of the model, without extension."""
    save_model_as: SaveFormat = "safetensors"
    """Format of saved models."""
    save_precision: SavePrecision | None = None
    """Number format of saved models; left out: as trained."""
    save_every_n_epochs: int | None = Field(None, ge=1)
    """Save a model after every n epochs."""
    save_every_n_steps: int | None = Field(None, ge=1)
    """Save a model after every n steps."""
    save_n_epoch_ratio: int | None = Field(None, ge=1)
    """Save about this many models, evenly over the epochs."""
    save_last_n_epochs: int | None = Field(None, ge=1)
    """Keep only the newest n models saved by epochs."""
    save_last_n_steps: int | None = Field(None, ge=1)
    """Keep only the models saved in the last n steps."""
    save_state: bool = False
    """Save a resumable state with each model: all that exact resume needs, about 12 bytes a weight with AdamW."""
    save_state_on_train_end: bool = False
    """Save a resumable state at the end of training."""
    save_last_n_epochs_state: int | None = Field(None, ge=1)
    """Keep only the newest n states saved by epochs, never fewer than two; left out: as save_last_n_epochs."""
    save_last_n_steps_state: int | None = Field(None, ge=1)
    """Keep only the states saved in the last n steps, never fewer than two; left out: as save_last_n_steps."""
    resume: str | None = Field(None, json_schema_extra=path_hint("state"))
    """Go on from this state folder, or from the newest state of this run folder, in output_dir."""
    resume_weights_only: bool = False
    """Take only the weights of the state that resume names, and start at step 0."""
    resume_from_huggingface: bool = False
    """The state that resume names is on a hub: owner/name/path/of/state, perhaps with :revision."""
    metadata_title: str | None = None
    """Title written into the model file; left out: output_name."""
    metadata_author: str | None = None
    """Author written into the model file."""
    metadata_description: str | None = None
    """Description written into the model file."""
    metadata_license: str | None = None
    """Licence written into the model file."""
    metadata_tags: str | None = None
    """Tags written into the model file, separated by commas."""
    metadata_usage_hint: str | None = None
    """Usage hint written into the model file."""
    metadata_thumbnail: str | None = None
    """Thumbnail written into the model file, as a data URL."""
    metadata_merged_from: str | None = None
    """Sources of a merge, written into the model file."""
    metadata_trigger_phrase: str | None = None
    """Trigger phrase written into the model file."""
    metadata_preprocessor: str | None = None
    """Preprocessor written into the model file."""
    metadata_is_negative_embedding: str | None = None
    """Whether this is a negative embedding, written into the model file."""
    huggingface_repo_id: str | None = Field(None, pattern=r"^[\w.-]+(/[\w.-]+)?$")
    """Repository for saved models, such as name/model; it is made if need be. Left out: nothing is sent."""
    huggingface_repo_type: Literal["model", "dataset"] = "model"
    """Kind of the repository."""
    huggingface_path_in_repo: str | None = Field(None, max_length=500)
    """Folder in the repository; left out: its root."""
    huggingface_token: str | None = Field(None, json_schema_extra=secret_hint())
    """Access token, never written to a file; HF_TOKEN in the environment or `hf auth login` do as well."""
    huggingface_repo_visibility: Literal["public", "private"] = "private"
    """Whether a new repository can be seen by everybody."""
    save_state_to_huggingface: bool = False
    """Send resumable states too, to the folder state in the repository."""
    async_upload: bool = False
    """Go on training while a model or state is sent."""


class SamplingSettings(Section):
    """Pictures drawn during training."""

    sample_prompts: str | None = Field(None, json_schema_extra=path_hint("file"))
    """File of prompts (.txt, .toml or .json in sd-scripts' format)."""
    sample_every_n_steps: int | None = Field(None, ge=0)
    """Draw samples after every n steps; 0 = never."""
    sample_every_n_epochs: int | None = Field(None, ge=0)
    """Draw samples after every n epochs; wins over steps."""
    sample_at_first: bool = False
    """Draw samples before the first step, to compare with."""
    sample_sampler: SamplerName = "ddim"
    """Sampler for prompts that name none."""
    hypernetworks: Strings = Field((), json_schema_extra=path_hint("file"))
    """Hypernetworks to draw with, each file or file:strength, one working on what the one before has made."""
    hypernetwork_strength: float = Field(1.0, ge=-4, le=4)
    """How strongly the hypernetwork that is trained counts in samples; training itself uses 1."""


class LoggingSettings(Section):
    """Logs beside the run's own events."""

    logging_dir: str | None = Field(None, json_schema_extra=path_hint("folder"))
    """Folder for TensorBoard logs; left out: none."""
    log_prefix: str = Field("", max_length=100)
    """Prefix of the log's folder name."""
    log_tracker_name: str = Field("finetuning", min_length=1, max_length=100)
    """Name of the tracker inside the log folder."""
    log_with: TrackerName | None = None
    """Where to log: tensorboard, wandb or all; left out: TensorBoard if there is a logging_dir."""
    wandb_run_name: str | None = Field(None, max_length=128)
    """Name of the run at Weights & Biases; left out: theirs."""
    wandb_api_key: str | None = Field(None, json_schema_extra=secret_hint())
    """Key of Weights & Biases, never written to a file; WANDB_API_KEY in the environment does as well."""
    log_tracker_config: str | None = Field(None, json_schema_extra=path_hint("file"))
    """TOML whose table [wandb] holds further arguments of wandb.init."""
    log_config: bool = False
    """Send the settings too, without paths and keys."""
    console_log_level: LogLevel = "INFO"
    """Show events from this level on: WARNING shows no steps and saves, ERROR only what ends the run."""
    console_log_file: str | None = Field(None, json_schema_extra=path_hint("file"))
    """Write what a headless run shows into this file instead of the terminal."""
