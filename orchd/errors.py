"""The one exception tree. Every error that a user can meet has a number, a name and a next step.

Numbers are stable and never reused. They are the JSON-RPC error codes too, and each has a section in
`docs/errors.md` (a test compares the two). A class states *what kind* of thing went wrong; the message given
when it is raised names the value that caused it; `hint` says what to do next.

10xx node and configuration, 11xx RPC, 20xx records, 21xx registry and admission, 30xx jobs, 31xx importers and
data sets, 40xx network, 50xx training and language models, 60xx averaging, 70xx serving, 80xx demo and service.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

EXIT_FAILED, EXIT_USAGE, EXIT_UNREACHABLE, EXIT_REFUSED, EXIT_NOT_FOUND, EXIT_INTERRUPTED = (
    1,
    2,
    3,
    4,
    5,
    130,
)


LIKENESS = 0.75
"""Of a wrong word and the one that may have been meant: `trian` and `train` 0.8, `stop` and `topic` 0.67."""


class OrchdError(Exception):
    """Something went wrong that has no number of its own: a mistake in orchd, or an answer of a newer one."""

    # The base of every numbered error. `code` is the stable number, `exit_code` what `orchctl` returns for it, `hint`
    # the next step (one sentence; the class gives a default, the place that raises may give a better one), `field` the
    # parameter at fault.
    code: ClassVar[int] = 1000
    exit_code: ClassVar[int] = EXIT_FAILED
    default_hint: ClassVar[str] = "Run `orchctl status`; if it happens again, the log says more."

    def __init__(self, message: str, *, hint: str | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint
        self.field = field

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def page(self) -> str:
        """Where the error is explained."""
        return f"docs/errors.md#e{self.code}"

    def __str__(self) -> str:
        return self.message


def error_classes() -> dict[int, type[OrchdError]]:
    """Every numbered error class by its number."""
    found: dict[int, type[OrchdError]] = {}
    waiting: list[type[OrchdError]] = [OrchdError]
    while waiting:
        cls = waiting.pop()
        waiting.extend(cls.__subclasses__())
        if "code" in vars(cls):
            found[cls.code] = cls
    return found


def from_wire(code: int, message: str, hint: str | None = None, field: str | None = None) -> OrchdError:
    """The exception for an error that came over a pipe or socket. An unknown number becomes an `OrchdError`."""
    return error_classes().get(code, OrchdError)(message, hint=hint, field=field)


def numbered(error: BaseException) -> OrchdError | None:
    """The numbered error in `error`: itself, or the first one inside an exception group (trio wraps them)."""
    if isinstance(error, OrchdError):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(numbered, error.exceptions)), None)
    return None


def did_you_mean(word: str, known: Iterable[str], before: str = "") -> str | None:
    """A hint with the known word that `word` most likely was to be, `before` in front of it; None if none is near."""
    import difflib  # only who made a mistake needs it

    near = difflib.get_close_matches(word, list(known), n=1, cutoff=LIKENESS)
    return f"Did you mean `{before}{near[0]}`?" if near else None


# ---- groups by what `orchctl` returns ------------------------------------------------------------------------


class Refused(OrchdError):
    """Refused by policy or verification."""

    exit_code = EXIT_REFUSED


class NotFound(OrchdError):
    exit_code = EXIT_NOT_FOUND


class BadRequest(OrchdError):
    """The caller's words are wrong: a parameter, a flag, a file's format."""

    exit_code = EXIT_USAGE


# ---- 10xx node and configuration -----------------------------------------------------------------------------


class ConfigInvalid(BadRequest):
    """A setting has an unknown name or a value of the wrong kind; the message says where it was read."""

    code = 1001
    default_hint = "Correct it where the message says it stands; docs/settings.md tells of them all."


class HomeBusy(OrchdError):
    """Another daemon runs on the same directory."""

    code = 1002
    default_hint = "Stop the other daemon first, or give this one its own ORCHD_HOME."


class IdentityInvalid(OrchdError):
    """The file with this node's private key can't be read, or is readable by others."""

    code = 1003
    default_hint = "Restore the key file from a backup, or move it away to let orchd make a new identity."


class DiskFull(OrchdError):
    """There is no space left on the disk, or too little above the *reserve*.

    orchd leaves a reserve of 256 MiB (268 MB) of the disk free, so that its index and its journal can be written at
    any time. Before a training, an average, an import, a fetch or a deployment begins it looks whether what they make
    fits beside the reserve, estimated from above, and refuses them where it does not. Decisions (trust, pins, removing)
    are still taken with less, down to 1 MiB.
    """

    code = 1004
    default_hint = "Free some space on that file system and run it again; nothing was half-written."


class NotAvailable(OrchdError):
    """What was asked for needs an optional part that is not installed."""

    code = 1005
    default_hint = "Install the named extra into the same environment and run it again."


class HomeUnusable(OrchdError):
    """The daemon's directories can't be made where they should be."""

    code = 1009
    default_hint = "Set ORCHD_HOME to a directory that you may write to."


# ---- 11xx RPC ------------------------------------------------------------------------------------------------


class DaemonUnreachable(OrchdError):
    """Nobody answers on the daemon's socket, or it went away in the middle of a call."""

    code = 1101
    exit_code = EXIT_UNREACHABLE
    default_hint = "Start it with `orchd`, or `orchctl service install` to keep it running."


class ParamsInvalid(BadRequest):
    """A method was called with a parameter that is missing, unknown or of the wrong kind."""

    code = 1102
    default_hint = "`orchctl NOUN VERB --help` or `rpc.discover` shows the parameters."

    def __init__(self, message: str, *, hint: str | None = None, field: str | None = None) -> None:
        """Without a `hint` the next step is to change what `field` names."""
        changed = field and f"Change `{field}`; `orchctl NOUN VERB --help` says what it takes."
        super().__init__(message, hint=hint or changed, field=field)


class MethodUnknown(BadRequest):
    """The daemon has no method of this name."""

    code = 1103
    default_hint = "`rpc.discover` lists the methods."


class LimitExceeded(BadRequest):
    """A request is larger, deeper or one more than the daemon takes at once."""

    code = 1104
    default_hint = "Send less at once."


class AmbiguousId(BadRequest):
    """A shortened id fits more than one thing."""

    code = 1105
    default_hint = "Give more characters of the id."


class RequestInvalid(BadRequest):
    """The JSON is no JSON-RPC 2.0 request."""

    code = 1106
    default_hint = 'A request is an object with `jsonrpc`: "2.0", `method`, `params` (an object) and `id`.'


class LineInvalid(BadRequest):
    """A line on the socket is no JSON text."""

    code = 1107
    default_hint = "Send one JSON text a line, in UTF-8."


class UsageInvalid(BadRequest):
    """`orchctl` or `orchd` was given words that it does not know."""

    code = 1109
    default_hint = "`orchctl --help` lists the commands."


class SocketRefused(OrchdError):
    """The socket's place is taken by something else, or belongs to somebody else."""

    code = 1108
    default_hint = "Move away what stands in the socket's place, or set ORCHD_HOME to a directory of your own."


# ---- 20xx records --------------------------------------------------------------------------------------------


class RecordMalformed(Refused):
    """Bytes that should be a signed record can't be read as one."""

    code = 2001
    default_hint = "The bytes are not a record of this kind; ask the sender for it again."


class RecordNotDeterministic(Refused):
    """A record is readable but not written in the one form that may be signed."""

    code = 2002
    default_hint = "The writer does not follow docs/SPEC-manifest.md; its record is not taken."


class SignatureInvalid(Refused):
    """A record's signature does not fit its bytes and its author's key."""

    code = 2003
    default_hint = "The record was changed after it was signed, or another key signed it. It is not taken."


class RecordTooLarge(Refused):
    """A record is larger than any honest one."""

    code = 2004
    default_hint = "No honest record is that large; it is not taken."


# ---- 21xx registry and admission -----------------------------------------------------------------------------


class AdapterUnknown(NotFound):
    """No adapter of this id is here or was announced."""

    code = 2101
    default_hint = "`orchctl adapter list` shows what is here, `--announced` what peers offer."


class BaseUnknown(NotFound):
    """This node has no base of this name or fingerprint."""

    code = 2102
    default_hint = "`orchctl base list` shows the bases that this node has."


class DatasetUnknown(NotFound):
    """This node has no data set of this id."""

    code = 2103
    default_hint = "`orchctl dataset list` shows the data sets that this node has."


class BlobUnknown(NotFound):
    """The index knows of bytes that are not on the disk."""

    code = 2104
    default_hint = "Fetch the adapter again from a peer that has it."


class FromTheFuture(Refused):
    """A record says that it was made later than now."""

    code = 2110
    default_hint = "Check the clocks of both machines."


class FileListRefused(Refused):
    """A manifest lists a file that no adapter has, lacks one that each has, or names one with a path."""

    code = 2111
    default_hint = "An adapter holds adapter_config.json, adapter_model.safetensors and maybe README.md, nothing else."


class DigestMismatch(Refused):
    """Bytes that arrived, or lie on the disk, are not those whose digest was signed."""

    code = 2112
    default_hint = "The bytes are not those that the author signed; they were thrown away. Fetch from another peer."


class TensorsRefused(Refused):
    """The weights file is no safetensors file of finite LoRA factors that fit the base."""

    code = 2113
    default_hint = "The weights file is damaged or not a plain safetensors LoRA; ask its author."


class AdapterConfigRefused(Refused):
    """`adapter_config.json` holds a setting that can't be used, or that orchd does not know."""

    code = 2114
    default_hint = "Only PEFT's LoRA settings are taken, and nothing that names code."


class ClaimRefused(Refused):
    """What the manifest says about rank, dtype, size or targets is not what the files show."""

    code = 2115
    default_hint = "The manifest says something that its files do not show; ask its author."


class NotAdmitted(Refused):
    """The adapter is in quarantine, and what was asked for takes admitted ones only."""

    code = 2116
    default_hint = "`orchctl adapter release` lets out what only a check or a policy of yours keeps in quarantine."


class AuthorBlocked(Refused):
    """An adapter comes from an author whom this node's user has blocked."""

    code = 2117
    default_hint = "`orchctl trust list` shows who is blocked here; `orchctl trust remove` lifts it."


class AdapterRevoked(Refused):
    """The author of an adapter has taken it back."""

    code = 2118
    default_hint = "Its author says not to use it; what the author gave as the reason is in the message."


class SizeRefused(Refused):
    """A manifest names a size that no adapter has, or one that its list of chunks does not make."""

    code = 2119
    default_hint = "The manifest's figures do not fit each other or are beyond every honest adapter; it is not taken."


class IndexDamaged(OrchdError):
    """The index over the adapters can't be read. Adapters and records are plain files beside it and are unharmed."""

    code = 2120
    default_hint = "The damaged index was set aside beside it; start the daemon again to make a new one."


class IndexTooNew(OrchdError):
    """A newer orchd has written the index."""

    code = 2121
    default_hint = "Install that version again, or move the index away to have it rebuilt."


class IndexUnavailable(OrchdError):
    """The index can't be opened for a reason outside it, such as rights or limits of the system."""

    code = 2122
    default_hint = "The index itself was left as it is; mend the cause that is named and start again."


class BundleRefused(Refused):
    """A file is no bundle of adapters, or holds something that no honest one does."""

    code = 2140
    default_hint = "Nothing of it was taken. `orchctl adapter export` writes bundles; a packed-again one is none."


class OutputExists(BadRequest):
    """There is a file already where one should be written."""

    code = 2141
    default_hint = "Choose another name, or say --replace to write over it."


class OutputRefused(BadRequest):
    """A file can't be written where it was asked for."""

    code = 2144
    default_hint = "Name a file in a folder that the daemon may write to."


class BaseChanged(Refused):
    """The files of a base are not those that were added under its name."""

    code = 2142
    default_hint = "Restore its files, or add the folder again if the change was meant."


class BaseLinkRefused(BadRequest):
    """Two bases can't be one and the same."""

    code = 2143
    default_hint = "Only two forms of one base (a folder and a GGUF file, say) can be linked."


class NothingToUndo(NotFound):
    """There is no act left that can be undone."""

    code = 2123
    default_hint = (
        "Removing, pinning, releasing, topics and what was decided about authors and peers can be undone, newest first;"
        " a revocation, a new key or a deployment can't."
    )


class UndoStale(OrchdError):
    """What the newest act changed was changed again since, so that taking it back would undo more than that."""

    code = 2124
    default_hint = "Do the opposite by hand: `orchctl adapter` and `orchctl trust` have a command for each way."


class NotReleasable(Refused):
    """An adapter is in quarantine for a reason that nobody here can overrule."""

    code = 2125
    default_hint = (
        "Only the verdicts of admission and of one's own policies can be overruled by hand. `orchctl trust remove`"
        " lifts a block; what an author has revoked stays out."
    )


class ManifestGone(NotFound):
    """The signed manifest of an adapter is not on the disk, though the index knows of it."""

    code = 2126
    default_hint = "`orchctl registry rebuild` takes it out of the index; fetch the adapter again."


class SubjectInvalid(BadRequest):
    """What is to be trusted or blocked is no author's key, no peer's id and no adapter, or it is this node itself."""

    code = 2150
    default_hint = (
        "Authors read `key_…` (`orchctl adapter list` shows them), peers `12D3Koo…` (`orchctl net peers`); an adapter"
        " that is here stands for its author."
    )


class SubjectUnknown(NotFound):
    """Nothing was decided about this author or peer."""

    code = 2151
    default_hint = "`orchctl trust list` shows what was decided, and about whom."


class NotTheAuthor(Refused):
    """Only who made an adapter can take it back, and nobody can vouch for their own."""

    code = 2152
    default_hint = "`orchctl trust block` keeps everything of an author away from this node."


class KeyUnchanged(OrchdError):
    """This node's key can't be changed now."""

    code = 2153
    default_hint = "The old key is still in use; mend the cause that is named and try again."


class RegistryIncomplete(OrchdError):
    """The index does not know of everything that is on the disk, so that nothing there may be called garbage."""

    code = 2139
    default_hint = "Run `orchctl registry rebuild`, then try again."


# ---- 30xx jobs -----------------------------------------------------------------------------------------------


class JobUnknown(NotFound):
    """There is no job of this id."""

    code = 3001
    default_hint = "`orchctl job list` shows the jobs."


class JobFailed(OrchdError):
    """A job ended with an error that has no number of its own."""

    code = 3002
    default_hint = "`orchctl job logs ID` shows what the worker said."


class JobCancelled(OrchdError):
    """The job was cancelled before it was done."""

    code = 3003
    default_hint = "Start it again when you want it; a training goes on with `orchctl train resume JOB`."


class WorkerLost(OrchdError):
    """The process that did the work is gone."""

    code = 3004
    default_hint = "The worker process ended without a result (killed, or out of memory). Start the job again."


class JobNotRunning(BadRequest):
    """The job has ended already."""

    code = 3005
    default_hint = "Only a queued or running job can be cancelled."


class JobInterrupted(OrchdError):
    """The daemon stopped while the job ran."""

    code = 3006
    default_hint = "Start it again; `orchctl job list` shows what else was interrupted."


class WorkerSilent(WorkerLost):
    """The process that did the work said nothing any more, for longer than `jobs.silent_seconds` allows, and was ended.

    A training goes on from its last checkpoint by itself, once; then it ends with this error."""

    code = 3007
    default_hint = "Start the job again. Where steps really take so long here, give `jobs.silent_seconds` more."


# ---- 31xx importers and data sets ----------------------------------------------------------------------------


class ImportUnreadable(BadRequest):
    """The file or folder is of no kind that can be imported."""

    code = 3101
    default_hint = "Give a chat export (zip or JSON), JSONL, or a JSON array of conversations."


class ImportTooLarge(BadRequest):
    """The file is larger than an import takes."""

    code = 3102
    default_hint = "Split the file, or export fewer conversations."


class DatasetUnusable(BadRequest):
    """The data set has too few usable conversations in the part that is needed."""

    code = 3103
    default_hint = "`orchctl dataset show` says how many rows each part has; import more or another split."


class DatasetInUse(OrchdError):
    """A job is using the data set."""

    code = 3104
    default_hint = "Wait for that job, or cancel it with `orchctl job cancel`."


class DatasetNameTaken(BadRequest):
    """Another data set has this name already; a name stands for one data set."""

    code = 3105
    default_hint = "Give another name with `--name`; `orchctl dataset list` shows those that are taken."


class DatasetHere(BadRequest):
    """The same rows, divided in the same way, are here already as a data set of another name."""

    code = 3106
    default_hint = "Use it under the name that it has; `orchctl dataset list` shows it."


class SecretsFound(Refused):
    """Keys or passwords are in what would be learnt, and nobody has said what to do with them."""

    code = 3107
    default_hint = (
        "`--redact` puts a word in their place, `--drop` leaves their rows out, `--keep` learns them; "
        "`orchctl dataset validate` lists all places."
    )


class SourceChanged(OrchdError):
    """The file was changed while it was read."""

    code = 3108
    default_hint = "Import it again when the other program has finished writing it."


# ---- 40xx network --------------------------------------------------------------------------------------------


class ListenFailed(OrchdError):
    """The node can't listen on an address of its settings."""

    code = 4001
    default_hint = "Choose another port with `net.listen` (port 0 takes a free one), or stop the program that holds it."


class AddressInvalid(BadRequest):
    """An address is no multiaddr with a peer's id in it."""

    code = 4002
    default_hint = "An address reads like /ip4/192.0.2.7/tcp/4001/p2p/12D3Koo..., as `orchctl net status` prints it."


class PeerUnreachable(OrchdError):
    """No connection to the peer came about."""

    code = 4003
    default_hint = "Check that the other node runs and that its address and port are reachable from here."


class NetworkDown(OrchdError):
    """The network part of the daemon is not running now."""

    code = 4004
    default_hint = "`orchctl net status` tells why; the network is restarted by itself after a failure."


class NoProvider(NotFound):
    """Nobody who is reachable has the adapter."""

    code = 4005
    default_hint = "`orchctl net peers` shows who is connected; try again when a node that has it is online."


class PeerMisbehaved(Refused):
    """A peer sent what the protocol does not allow."""

    code = 4006
    default_hint = "What the peer sent was thrown away; nothing here has changed."


class PeerTimeout(OrchdError):
    """A peer did not answer in time."""

    code = 4007
    default_hint = "The peer is slow or gone; try again, or fetch from another one."


class TopicInvalid(BadRequest):
    """The name can't be a topic's."""

    code = 4008
    default_hint = "A topic's name has 1 to 120 characters in Unicode form NFC."


class PeerRefused(OrchdError):
    """A peer declined the request."""

    code = 4009
    default_hint = "The peer answered, and said no; try again later or ask another one."


class PeerBlocked(Refused):
    """The user has blocked this peer."""

    code = 4010
    default_hint = "`orchctl trust remove PEER` lifts it."


class InviteInvalid(BadRequest):
    """The text is no invitation to a topic, or a part of it is missing."""

    code = 4011
    default_hint = "Take the whole line that `orchctl topic invite NAME` printed on the other node."


class NotBanned(NotFound):
    """There is no ban to lift."""

    code = 4012
    default_hint = "`orchctl net status` lists who is banned; blocks are lifted with `orchctl trust remove PEER`."


class PeerBusy(PeerRefused):
    """A peer serves others at the moment, or has given this node its share for now."""

    code = 4013
    default_hint = "It will answer later; meanwhile others that have the adapter are asked."


class PeerIsSelf(BadRequest):
    """The peer that is meant is this node."""

    code = 4014
    default_hint = "Give the address or id of another node: `orchctl net status` there prints them."


class SecretWeak(BadRequest):
    """The secret of a private topic could be guessed."""

    code = 4015
    default_hint = "`orchctl topic invite NAME` makes a topic with a secret of 256 random bits: let a member do that."


class PeerQuota(PeerBusy):
    """A peer has given this node all that its settings allow for now (`net.upload_quota_mb` there)."""

    code = 4016
    default_hint = (
        "What came is kept: `orchctl adapter fetch ID` goes on from there later, or at once with another peer that has"
        " the adapter."
    )
    #: Seconds until the peer gives as much as it was asked for; 0 when it does not say.
    after_s: float = 0.0


# ---- 50xx training and language models -----------------------------------------------------------------------


class BaseUnusable(BadRequest):
    """The folder holds no base model that can be loaded."""

    code = 5001
    default_hint = "A base is a Hugging Face folder with config.json, safetensors files and a tokenizer."


class TemplateUnusable(BadRequest):
    """The base's chat template can't be used to train on answers alone."""

    code = 5002
    default_hint = "The base's chat template does not show where an answer begins; use an instruct model's."


class AdapterUnfit(BadRequest):
    """The adapter can't be loaded onto this base."""

    code = 5003
    default_hint = "Only plain LoRA adapters (PEFT, safetensors) made for this very base can be loaded."


class TrainingRefused(BadRequest):
    """A setting of the training makes no sense for this data set or base."""

    code = 5004
    default_hint = "Change the named setting and start again."


class TrainingDiverged(OrchdError):
    """The loss became infinite or NaN."""

    code = 5005
    default_hint = "Halve the learning rate and start again."


class CheckpointUnfit(Refused):
    """A checkpoint is of other settings or other data than the run that would go on from it."""

    code = 5006
    default_hint = "Start the training again with `orchctl train start`: what it was on has changed since."


class RunNotResumable(BadRequest):
    """A training can't go on from where it stopped: it has ended, runs already, or nothing of it is kept."""

    code = 5007
    default_hint = "`orchctl checkpoint list` shows what is kept; `orchctl train continue_from` goes on from one."


class CheckpointUnknown(NotFound):
    """There is no such run here, or it keeps no checkpoint of that step."""

    code = 5008
    default_hint = "`orchctl checkpoint list` shows what is kept."


class ForgetsTooMuch(Refused):
    """An adapter has unlearnt so much of what its base could do that publishing it stops."""

    code = 5030
    default_hint = "Train again with `--replay 0.3`, or publish it all the same with `--despite-forgetting`."


class TooFewToAttest(BadRequest):
    """A measurement on so few examples is not signed: it says little about the adapter, and much about the examples."""

    code = 5031
    default_hint = "Attest with a data set of ten examples or more."


class LeakReportMissing(Refused):
    """An adapter that was trained here is to be published, and how much of its data it gives away was not measured."""

    code = 5040
    default_hint = "`orchctl adapter leak-report ADAPTER` measures it, and signs the verdict."


class LeaksTooMuch(Refused):
    """An adapter that is to be published gives away who was in its data, or says a canary word for word."""

    code = 5041
    default_hint = "Train it anew as its leak report advises, or publish it with `--despite-leak`."


class LeakUnmeasurable(BadRequest):
    """What an adapter was trained on is not here, so that no leak report can be made."""

    code = 5042
    default_hint = "Name a data set that it was trained on: `orchctl adapter leak-report ADAPTER --dataset NAME`."


class SandboxMissing(Refused):
    """A job that has to run in a sandbox can't have one on this system."""

    code = 5050
    default_hint = (
        'Set `jobs.sandbox = "auto"` to run it with what this system has; the report then says what was open.'
    )


class BaseIncomplete(BadRequest):
    """A base's files are not all there, or one of them is not whole."""

    code = 5051
    default_hint = "Let its download end, then add it again; `orchctl base add ORG/NAME` goes on where it stopped."


class BaseHoldsPickles(Refused):
    """A base has weights in a form that can run code when it is read."""

    code = 5052
    default_hint = "Use the base's safetensors files, and move the named file away; orchd never reads it."


class HubUnreachable(OrchdError):
    """The place that bases are downloaded from does not answer, or broke off."""

    code = 5053
    default_hint = "Look at the connection, then run the same command again: it goes on where it stopped."


class HubRefused(OrchdError):
    """The place that bases are downloaded from has no such base or file, or does not give it out now."""

    code = 5054
    default_hint = "Check the name; a private one needs a token: `--token-file FILE`, or HF_TOKEN for the daemon."


class HubGated(Refused):
    """The base's makers want their terms accepted before it is downloaded."""

    code = 5055
    default_hint = "Accept the terms on its page, signed in; then give a token of that account: `--token-file FILE`."


class OllamaModelUnknown(NotFound):
    """There is no such model in the Ollama models folder, or it is no base."""

    code = 5056
    default_hint = "`ollama list` shows what is there; OLLAMA_MODELS names the folder if it is not the usual one."


class MemoryShort(OrchdError):
    """A job needs more memory than its limit, or than there is. The message says how much is missing."""

    code = 5057
    default_hint = "Close other programs; a training takes less with `--gradient-checkpointing on`."


class BaseIsPrivate(Refused):
    """A base that was made here by training whole weights is never announced, and neither is what is made for it."""

    code = 5060
    default_hint = "`orchctl train start … --method full --extract-rank 16` makes an adapter that can be shared."


class QuantizationMissing(OrchdError):
    """What holds a base in 4 or 8 bits is not installed."""

    code = 5061
    default_hint = "`pip install 'orchd[quantize]'` beside orchd, or train without `--quantization`."


class BaseUnchanged(OrchdError):
    """A training of whole weights changed less than a base's file can hold: rounded to BF16, with 8 significant bits,
    its numbers are those of the base that it began with, and the two could not be told apart."""

    code = 5085
    default_hint = "Train again with more steps, or at a higher rate: `--steps N`, `--learning-rate X`."


class BackendMissing(OrchdError):
    """What was asked to compute the base is not installed."""

    code = 5090
    default_hint = "`pip install 'orchd[mlx]'` beside orchd, or train without `--backend`."


class BackendUnfit(BadRequest):
    """What was asked to compute the base can't do that with this base or these settings."""

    code = 5091
    default_hint = "Train with `--backend torch`."


class EnvironmentMissing(OrchdError):
    """What training needs is not installed here, and this command does not download it by itself."""

    code = 5095
    default_hint = "`orchctl environment make` makes the training environment; `orchctl train start` does so by itself."


class EnvironmentForbidden(Refused):
    """What training needs is not installed here, and the setting `training.environment` forbids to download it."""

    code = 5096
    default_hint = (
        "Install the extra `train` beside orchd, or set `training.environment` to auto and start orchd again."
    )


class IndexUnreachable(OrchdError):
    """The package index that the training environment is downloaded from does not answer, or broke off."""

    code = 5097
    default_hint = "Look at the connection, then run the same command again: what was downloaded is kept."


class EnvironmentNotMade(OrchdError):
    """The training environment could not be made, or what was made does not import. The job's log has pip's words."""

    code = 5098
    default_hint = "`orchctl environment repair` tries again with new downloads; `orchctl job logs JOB` says more."


# ---- 60xx averaging ------------------------------------------------------------------------------------------


class AverageSpecInvalid(BadRequest):
    """An average was asked for of fewer than two adapters, with senseless weights, or with no such rank or method."""

    code = 6001
    default_hint = "Name two adapters or more; weights are positive numbers, the rank is from 1 to 1024."


class ShapesDiffer(Refused):
    """Two adapters change the same module with matrices of different shapes."""

    code = 6002
    default_hint = "These adapters are not for the same base; average those that name the same base fingerprint."


class AverageIsZero(OrchdError):
    """What is left after averaging is zero everywhere."""

    code = 6003
    default_hint = "The adapters are zero or cancel each other; there is nothing to write."


class AverageOverflows(OrchdError):
    """The average holds numbers that its dtype can't."""

    code = 6004
    default_hint = "One adapter's weights are absurdly large; look at the norms, or write F32."


class RecipeMismatch(Refused):
    """A published average is further from its leaves' exact one than rounding explains."""

    code = 6005
    default_hint = "The published average is not what its recipe gives; ask its author, or average the leaves yourself."


class LeavesUnknown(Refused):
    """Adapters that an average was made from are not here."""

    code = 6006
    default_hint = "Fetch the average's leaves first; without them it can't be recomputed."


class NotAverageable(BadRequest):
    """An adapter that no average can be made of: it is more than plain LoRA factors."""

    code = 6007
    default_hint = "`orchctl adapter show ID` lists what the adapter can do; choose one that is `averageable`."


class RankRuleInvalid(BadRequest):
    """The rank of an average is no number and none of the rules, or needs more than 1,024 in one module."""

    code = 6008
    default_hint = "Give 16 (at most that), energy:.95 (of each module), budget:16 (as many numbers) or stacked (all)."


class TooFewVotes(BadRequest):
    """A method that compares votes was given too few: near-copies and one author's adapters are one vote."""

    code = 6009
    default_hint = "Name adapters of more authors, or choose --method clip, which works with any number."


class LeafIsZero(Refused):
    """An adapter that is to be averaged changes nothing, or its numbers are too large to be compared."""

    code = 6010
    default_hint = "Leave it out; it has no direction, and can't have a vote."


class AverageNotExpandable(BadRequest):
    """An average of averages is made of their leaves, and these can't be weighted: the method was no weighted sum."""

    code = 6011
    default_hint = "`orchctl adapter show ID` names its leaves; average those instead, with the method that you want."


class TooFewPassed(Refused):
    """Of the adapters that were to be averaged fewer than two passed the gate: one's own held-out data, and the word of
    followed authors."""

    code = 6012
    default_hint = (
        "Use the one that is left by itself, or name others; --no-gate averages without looking at your data."
    )


class LeafWithdrawn(Refused):
    """An adapter went out of use while it was averaged: its author revoked it, or it was removed or blocked here."""

    code = 6013
    default_hint = "Nothing was kept. Average again without it."


class LeafUnreadable(OrchdError):
    """The files of an adapter that is averaged can't be read: they vanished or the disk fails."""

    code = 6014
    default_hint = "`orchctl adapter verify ID` looks at its files; fetch or import it again, then average again."


class LicenceUnfit(Refused):
    """Nobody has said under which licence an adapter of somebody else may be changed and passed on, or its licence
    doesn't go together with another's in one average."""

    code = 6015
    default_hint = "Leave it out, or ask its author; what they allowed you is said with --licence."


class GateDataUnfit(BadRequest):
    """The data set that is to judge an average has too few held-out rows that its base can read."""

    code = 6016
    default_hint = "Name another with --dataset, import one with a test part, or average without one by --no-gate."


class AverageIsCandidate(Refused):
    """An average that one's own held-out data did not find better than the base and than each single adapter, or that a
    trigger was found in, is not announced."""

    code = 6017
    default_hint = "`orchctl average show ID` has the figures; `--candidate NAME`, with its name, announces it anyway."


# ---- 70xx serving --------------------------------------------------------------------------------------------


class ConsentMissing(Refused):
    """A federation publishes adapters trained on one's own data by itself; it was joined without agreeing to that."""

    code = 6020
    default_hint = "Give `--agree` with `orchctl federation join` when that is what you want."


class FederationUnknown(NotFound):
    """No federation of that id, beginning of an id or topic is known here."""

    code = 6021
    default_hint = "`orchctl federation list` shows those that are known; who is in its topic hears of it."


class FederationUnfit(BadRequest):
    """A federation can't be made or joined as it was asked for: the message says what does not fit."""

    code = 6022
    default_hint = "`orchctl federation create --help` and `join --help` say what is wanted."


class WeightsUnreadable(OrchdError):
    """The weights of a base or adapter can't be read."""

    code = 7001
    default_hint = "The weights file is damaged or not safetensors; fetch or make it again."


class BaseNotSupported(OrchdError):
    """The base is of a kind that can't be written as GGUF yet."""

    code = 7002
    default_hint = "orchd writes Llama, Mistral, Qwen2, Qwen3, Gemma 2 and 3; else `orchctl base add` its GGUF file."


class AdapterNotMergeable(Refused):
    """The adapter can't be folded into its base."""

    code = 7003
    default_hint = "Only plain LoRA matrices can be folded into a base; train it again without the named setting."


class QuantizeRefused(BadRequest):
    """There is no such quantisation."""

    code = 7004
    default_hint = "Choose F32, F16, Q8_0 or Q4_K_M."


class ParityFailed(Refused):
    """The file's answers differ from those of the base with its adapter."""

    code = 7005
    default_hint = "The file would not answer as the trained adapter does; try F16 or F32, or --force to deploy it."


class ModelNotLoaded(OrchdError):
    """The runtime could not load the deployed file."""

    code = 7006
    default_hint = "Deploy it again; `orchctl job logs ID` shows what llama.cpp said."


class DeploymentUnknown(NotFound):
    """There is no deployment of this name."""

    code = 7007
    default_hint = "`orchctl deployment list` shows the deployments."


class AnswerInterrupted(OrchdError):
    """The runtime ended in the middle of an answer."""

    code = 7008
    default_hint = "Ask again; the model's process is started anew."


class PromptRefused(BadRequest):
    """The conversation does not fit into the model's context."""

    code = 7009
    default_hint = "Shorten the conversation, or ask for fewer tokens."


GOES_ON_AFTER = (PromptRefused.code, AnswerInterrupted.code)
"""Errors of one answer, after which a conversation can go on."""


class TargetUnreachable(OrchdError):
    """The server to deploy to does not answer."""

    code = 7010
    default_hint = "Start the server, or deploy with --target embedded, which needs none."


class TargetRefused(OrchdError):
    """The server to deploy to said no."""

    code = 7011
    default_hint = "The server's own words are in the message; what it served before is unchanged."


class TargetStreamBroken(OrchdError):
    """The server broke off in the middle of a deployment."""

    code = 7012
    default_hint = "Whether the server kept it is unknown: look at its list of models, then deploy again."


class TargetNameRefused(BadRequest):
    """The name can't be a model's on that server."""

    code = 7013
    default_hint = "Choose a name such as my-assistant:latest (letters, digits, '-', '_', '.'; at most 80)."


class AnswerDiffers(Refused):
    """After the deployment the server answers otherwise than the proof."""

    code = 7014
    default_hint = "The server does not answer as the proof did (its own template or engine?); remove it there."


class ServedElsewhere(BadRequest):
    """The deployment answers in another program, not in the daemon."""

    code = 7015
    default_hint = "Ask it there; `orchctl deployment show` says where it is."


class GgufRefused(OrchdError):
    """The base's GGUF file is damaged: cut short, or its counts, lengths or places do not fit it."""

    code = 7016
    default_hint = "Fetch or make the file again; `orchctl base verify NAME` tells whether it changed since it came."


class ExportFailed(OrchdError):
    """The written model does not give the numbers that the adapter on its base gives, or could not be written."""

    code = 7017
    default_hint = "Choose another format; merged-safetensors keeps every number as it is."


class EndpointNotOpened(OrchdError):
    """The OpenAI-compatible endpoint can't listen."""

    code = 7030
    default_hint = "Give another `--port`, or 0 for any free one."


class TokenFileRefused(BadRequest):
    """The file with the endpoint's token can't be used, or others may read it."""

    code = 7031
    default_hint = "Name a file that isn't there yet (it is made, readable by you alone), or `chmod 600` it."


class EndpointRequestRefused(BadRequest):
    """What was sent to the OpenAI-compatible endpoint is nothing that it takes."""

    code = 7032
    default_hint = "The message names the field; README.md lists what the endpoint takes."


class EndpointTokenWrong(Refused):
    """A request to the OpenAI-compatible endpoint came without its token."""

    code = 7033
    default_hint = "Send `Authorization: Bearer TOKEN`; `orchctl serve status` names the file with the token."


class EndpointPathUnknown(NotFound):
    """The OpenAI-compatible endpoint has no such path or model."""

    code = 7034
    default_hint = "There are /v1/models, which lists the models, and /v1/chat/completions."


class TargetNameTaken(Refused):
    """The name stands for a model in that target which orchd did not put there."""

    code = 7035
    default_hint = "Choose another `--name`, or give `--replace` to have it replaced: nothing brings it back then."


class NothingBefore(NotFound):
    """There is nothing to go back to: the deployment is the first of its name, or what was before it is gone."""

    code = 7036
    default_hint = "`orchctl deploy ADAPTER --name NAME` puts another adapter there."


class DeployUnderWay(Refused):
    """Something is being deployed under this name already."""

    code = 7037
    default_hint = "Wait for it (`orchctl job watch ID`) or stop it (`orchctl job cancel ID`), then deploy again."


class TargetVersionRefused(Refused):
    """The server to deploy to is too old."""

    code = 7038
    default_hint = "Update the server, or deploy with --target embedded, which needs none."


class TargetBaseMissing(NotFound):
    """The model to deploy onto is not in that server, or it is none whose weights are a GGUF there."""

    code = 7039
    default_hint = "`ollama list` shows what is there; without `--onto` nothing is needed there."


class TargetBaseDiffers(Refused):
    """The model to deploy onto is not the adapter's base."""

    code = 7040
    default_hint = "Name the model that the adapter was trained on, or leave `--onto` out: orchd brings the base along."


class DeployOntoRefused(BadRequest):
    """Only Ollama has models of its own whose template and texts can be carried over."""

    code = 7041
    default_hint = "Leave `--onto` out, or give `--target ollama`."


class PreferenceRefused(BadRequest):
    """Two deployments that can't be told apart are not compared."""

    code = 7042
    default_hint = "Deploy two different adapters, and name both."


class RouteUnready(OrchdError):
    """Nothing is deployed that a request could be routed to."""

    code = 7050
    default_hint = "`orchctl deploy --name plain` deploys the plain base, and `orchctl deploy ADAPTER --name NAME` one."


class RouterLost(OrchdError):
    """The router's process ended, or did not answer in time."""

    code = 7051
    default_hint = "Ask again: it is started anew. `orchctl logs` has what it said last."


class RouteUnknown(NotFound):
    """A correction names an answer that is not there to be chosen, or there is nothing to correct."""

    code = 7052
    default_hint = "`orchctl route status` lists what takes part."


# ---- 80xx demo and service -----------------------------------------------------------------------------------


class DemoFailed(OrchdError):
    """The demo came to its end, but not to the results that it promises."""

    code = 8001
    default_hint = "Run it again with --keep: the homes with every log stay, and the demo prints where they are."


class ExamplesMissing(NotFound):
    """The demo's data files are not there."""

    code = 8002
    default_hint = "Run it in a checkout of orchd, or name the folder with --examples."


class NodeDidNotStart(OrchdError):
    """A daemon of the demo was not ready in time."""

    code = 8003
    default_hint = "Run it again with --keep and read daemon.log in that node's home."


class NodeEnded(OrchdError):
    """A daemon of the demo ended before the demo did."""

    code = 8004
    default_hint = "Run it again with --keep and read the end of daemon.log in that node's home."


class ServiceRefused(OrchdError):
    """The service can't be installed or removed as asked: no rights, a foreign file, or an unknown platform."""

    code = 8010
    default_hint = "`orchctl service install --dry-run` shows what would be done."


class ServiceManagerFailed(OrchdError):
    """systemd or launchd did not do what it was told, or is not there."""

    code = 8011
    default_hint = "Without a service manager, as in a container or over su, run `orchd` itself."
