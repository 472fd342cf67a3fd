"""PublishingMixin: the model card of a trainer, and its upload to the Hub."""

from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from trl import SFTTrainer

from edit_trl.data.preparation import PreparationReport
from edit_trl.hub.card_facts import (
    OBJECTIVE_FIELDS,
    TRAINING_FIELDS,
    CardFacts,
    Example,
    StageFacts,
    adapter_options,
    plain_logs,
    plain_options,
    quantization_name,
    write_facts,
)
from edit_trl.hub.model_card import package_versions, write_card
from edit_trl.hub.repository import account, model_files, open_repository, upload
from edit_trl.models.adapters import remember_base
from edit_trl.training.config import DualCoTConfig
from edit_trl.training.resuming.checkpoints import written_whole


class PublishingMixin(SFTTrainer):
    """Model cards and uploads for a `transformers.Trainer` on dual CoTs.

    Only the files that `edit_trl.hub.repository.model_files` names are pushed, and never a checkpoint. The class
    overrides hooks of `transformers.Trainer` and `trl`.
    """

    args: DualCoTConfig
    model: Any
    hub_model_id: str | None  # type: ignore[assignment]  # transformers' hook gives it the value None and no type
    preparation_reports: dict[str, PreparationReport]
    _examples: list[Example]
    _conversational: bool

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # The Trainer pickles its arguments beside the weights, the Hub token with them.
        token, self.args.hub_token = self.args.hub_token, None
        if is_peft_model(self.model):
            remember_base(self.model)
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token
        if is_peft_model(self.model):  # PEFT writes a blank card
            (Path(str(output_dir or self.args.output_dir)) / "README.md").unlink(missing_ok=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, as in `transformers.Trainer`, and its card beside it; a checkpoint has none."""
        super().save_model(output_dir, _internal_call)
        if not _internal_call:
            folder = Path(str(output_dir or self.args.output_dir))
            with written_whole("the model card", folder):
                self._write_card(folder)

    def create_model_card(  # type: ignore[override]  # as in TRL, whose arguments are not those of transformers
        self,
        model_name: str | None = None,
        dataset_name: str | list[str] | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        """Write the card, its picture and `card.json` into the output folder.

        Args:
            model_name: The name in the title; the folder's where None.
            dataset_name: Id or path of the dual CoTs; a list for a mixture.
            tags: Tags of the Hub, in addition to the trainer's own.
        """
        self._write_card(Path(str(self.args.output_dir)), model_name, dataset_name, tags)

    def _write_card(
        self,
        folder: Path,
        model_name: str | None = None,
        dataset_name: str | list[str] | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        if not self.is_world_process_zero():
            return
        all_tags = {*self._tag_names, *([tags] if isinstance(tags, str) else tags or [])}
        facts = CardFacts("adapter" if is_peft_model(self.model) else "model", [self._facts(dataset_name)])
        write_facts(folder, facts)
        write_card(folder, facts, model_name=model_name, tags=sorted(all_tags))

    def _facts(self, dataset_name: str | list[str] | None) -> StageFacts:
        args, config = self.args, self.model.config
        loading: Any = args.model_init_kwargs  # `__post_init__` has read the text of an option
        quantization = getattr(config, "quantization_config", None)
        return StageFacts(
            name=Path(str(args.output_dir)).name,
            base_model=config._name_or_path,
            revision=(loading or {}).get("revision"),
            adapter=adapter_options(self.model) if is_peft_model(self.model) else None,
            quantization=quantization_name(quantization) if quantization else None,
            dataset=dataset_name,
            rows={name: str(report) for name, report in self.preparation_reports.items()},
            objective=plain_options(args, OBJECTIVE_FIELDS),
            training=plain_options(args, TRAINING_FIELDS),
            processes=self.accelerator.num_processes,
            logs=plain_logs(self.state.log_history),
            results=next((e for e in reversed(self.state.log_history) if "train_runtime" in e), {}),
            examples=self._examples,
            conversational=self._conversational,
            versions=package_versions(),
        )

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository, private unless `hub_private_repo` is false, and check write access.

        Raises:
            InputError: The Hub refuses.
        """
        if not self.is_world_process_zero():
            return
        token, args = token or self.args.hub_token, self.args
        repo_id = args.hub_model_id or f"{account(token) or 'your-name'}/{Path(str(args.output_dir)).name}"
        private = args.hub_private_repo if private is None else private
        open_repository(repo_id, private=private, revision=args.hub_revision, token=token)
        self.hub_model_id = repo_id

    def push_to_hub(  # type: ignore[override]  # transformers' returns None on other processes too
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> str | None:
        """Save the model and its card and upload them.

        Args:
            commit_message: The message of the commit.
            blocking: Ignored; the method always waits for the upload.
            token: A token of the Hub; `hub_token` of the configuration where None.
            revision: The branch; `hub_revision` of the configuration where None.
            private: Whether a new repository is private.
            card: Arguments of `create_model_card`.

        Returns:
            The page of the commit; None on processes other than the first.

        Raises:
            InputError: The Hub refuses.
        """
        token = token or self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        self.create_model_card(**card)
        if not self.is_world_process_zero():
            return None
        return upload(
            model_files(Path(str(self.args.output_dir))),
            str(self.hub_model_id),
            message=commit_message or "End of training",
            revision=revision or self.args.hub_revision,
            token=token,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Do nothing: checkpoints hold optimizer states and pickles. Only the finished model is pushed."""
