//! The arguments of the command line.

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use tersor::core::Progress;
use tersor::pipeline::Text;
use tersor::pipeline::plan::{Data, Options};

/// Compress neural networks on a plain CPU machine.
#[derive(Parser, Debug)]
#[command(name = "tersor", version, arg_required_else_help = true)]
pub struct Args {
    /// Print the result as one JSON object on stdout.
    #[arg(long, global = true)]
    pub json: bool,
    /// Number of threads [default: all processors].
    #[arg(long, global = true, value_parser = threads)]
    pub threads: Option<usize>,
    /// The subcommand.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Parses a number of threads.
fn threads(s: &str) -> Result<usize, String> {
    s.parse().ok().filter(|n| (1..=1024).contains(n)).ok_or_else(|| "must be 1 to 1024".to_string())
}

/// The subcommands.
#[derive(Subcommand, Debug)]
#[allow(missing_docs)]
pub enum Verb {
    /// List the architecture and tensors of a model.
    Inspect(Inspect),
    /// List the kinds of stages that recipes may name, or print the TOML that a name stands for.
    Recipes(Recipes),
    /// Show the result of a recipe on a model without compressing it: sizes, bits, memory, tasks.
    Plan(Plan),
    /// Gather statistics of the activations of the original network, for `compress --stats`.
    Calibrate(Calibrate),
    /// Compress a model into a directory.
    Compress(Compress),
    /// Measure perplexity, size and speed.
    Eval(Eval),
    /// Compress with several recipes and evaluate each.
    Compare(Compare),
    /// Compare recipes on the model that ships with Tersor.
    Demo(Demo),
    /// Write an HTML page with tables and charts of results.
    Report(Report),
    /// Write a model in another format.
    Convert(Convert),
    /// Check the hashes, shapes and values of a compressed model.
    Verify(Verify),
    /// Continue a text.
    Generate(Generate),
}

/// `tersor inspect`
#[derive(clap::Args, Debug)]
pub struct Inspect {
    /// A model directory, a `.gguf` file, or an output of `compress`.
    pub model: PathBuf,
}

/// `tersor recipes`
#[derive(clap::Args, Debug)]
pub struct Recipes {
    /// Name of a recipe, or a TOML file: its TOML is printed.
    pub name: Option<String>,
}

/// Calibration data; recipes that need none ignore it.
#[derive(clap::Args, Debug, Default)]
pub struct Calibration {
    /// Calibration text.
    #[arg(long)]
    pub calib: Option<PathBuf>,
    /// Number of windows of calibration text; for an encoder, number of lines [default: that of the plan, else 128].
    #[arg(long)]
    pub calib_windows: Option<usize>,
    /// Statistics files from `calibrate` (all shards), or an importance matrix of llama.cpp, instead of a text.
    #[arg(long, value_delimiter = ',', conflicts_with = "calib")]
    pub stats: Vec<PathBuf>,
    /// Maximum memory (`300MB`, `2GiB`); hidden states are kept on disk if that is needed.
    #[arg(long, value_parser = bytes)]
    pub max_memory: Option<u64>,
}

impl Calibration {
    /// Returns what a budget takes from these arguments; without a text, the one that is built in, with a warning.
    pub fn options_or_built_in(&self, ctx: Option<usize>, generic: bool, progress: &dyn Progress) -> Options {
        let mut options = self.options(ctx, generic);
        if let Data::None = options.data {
            let what = "the built-in calibration text is used, English prose; give one that is like the model's use with --calib";
            progress.warn(what);
            options.data =
                Data::Text(Text::new("the built-in calibration text", include_str!("../data/calibration.txt")));
        }
        options
    }

    /// Returns what a plan takes from these arguments.
    pub fn options(&self, ctx: Option<usize>, generic: bool) -> Options {
        let data = match (&self.calib, self.stats.is_empty()) {
            (Some(path), _) => Data::Text(Text::file(path)),
            (None, false) => Data::Statistics(self.stats.clone()),
            (None, true) => Data::None,
        };
        Options { data, windows: self.calib_windows.unwrap_or(Options::default().windows), ctx, generic }
    }
}

/// Parses a number of bytes: `1500000`, `300MB`, `1.5GiB`.
fn bytes(s: &str) -> Result<u64, String> {
    let digits = s.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(s.len());
    let (number, unit) = s.split_at(digits);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024f64.powi(2),
        "gib" => 1024f64.powi(3),
        _ => return Err("must be a number of bytes, such as 300MB or 2GiB".into()),
    };
    let bytes = number.parse::<f64>().ok().map(|n| n * unit).filter(|b| b.is_finite() && *b < 9e18);
    bytes.map(|b| b as u64).ok_or_else(|| "must be a number of bytes, such as 300MB or 2GiB".to_string())
}

/// `tersor calibrate`
#[derive(clap::Args, Debug)]
pub struct Calibrate {
    /// A model directory or a `.gguf` file.
    pub model: PathBuf,
    /// Name of a recipe, or a TOML file; the statistics that it needs are gathered.
    #[arg(long)]
    pub recipe: String,
    /// Calibration text.
    #[arg(long)]
    pub calib: PathBuf,
    /// Number of windows of calibration text; for an encoder, number of lines.
    #[arg(long, default_value_t = 128)]
    pub calib_windows: usize,
    /// Tokens per window [default: the smaller of 512 and the model's maximum].
    #[arg(long)]
    pub ctx: Option<usize>,
    /// Gather part I of N only, counted from 1; `compress --stats` takes the files of all parts.
    #[arg(long, value_parser = shard)]
    pub shard: Option<(usize, usize)>,
    /// Output file.
    #[arg(long)]
    pub out: PathBuf,
    /// Maximum memory (`300MB`, `2GiB`); hidden states are kept on disk if that is needed.
    #[arg(long, value_parser = bytes)]
    pub max_memory: Option<u64>,
    /// Seed of random samples.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// Parses a part of a whole, `I/N`.
fn shard(s: &str) -> Result<(usize, usize), String> {
    let parsed = s.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    parsed
        .filter(|(i, n): &(usize, usize)| (1..=*n).contains(i))
        .ok_or_else(|| "must be I/N with I from 1 to N, such as 1/4".to_string())
}

/// `tersor plan`
#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["recipe", "budget", "bits", "to"])))]
pub struct Plan {
    /// A model directory or a `.gguf` file.
    pub model: PathBuf,
    /// Name of a recipe, or a TOML file.
    #[arg(long)]
    pub recipe: Option<String>,
    /// Choose bits and method of each matrix so that all weight files together take at most this size (`60MB`), by the measured effect of each
    /// matrix on the predictions for the calibration text.
    #[arg(long, value_parser = bytes)]
    pub budget: Option<u64>,
    /// Like --budget, for a maximum number of bits per weight, embedding and head included.
    #[arg(long)]
    pub bits: Option<f64>,
    /// Show instead the type of every tensor in a file for llama.cpp: `gguf:TYPE`, as in `convert --to`, with fallbacks.
    #[arg(long, conflicts_with_all = ["measured", "out"])]
    pub to: Option<String>,
    /// File for the measurements of a budget: read if it exists, written otherwise. With it, other budgets for the same model and text need no
    /// new measurement.
    #[arg(long, conflicts_with = "recipe")]
    pub measured: Option<PathBuf>,
    /// Calibration data.
    #[command(flatten)]
    pub calibration: Calibration,
    /// Tokens per window [default: the smaller of 512 and the model's maximum].
    #[arg(long)]
    pub ctx: Option<usize>,
    /// Write the plan to a file, for `compress --plan`; if the name ends in `.toml`, write the recipe only.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Accept a model of unknown architecture; its matrices are found by name patterns.
    #[arg(long)]
    pub generic: bool,
    /// Seed of all random numbers.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// `tersor compress`
#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("how").required(true).args(["recipe", "plan", "budget", "bits"])))]
pub struct Compress {
    /// A model directory or a `.gguf` file.
    pub model: PathBuf,
    /// Name of a recipe, or a TOML file.
    #[arg(long)]
    pub recipe: Option<String>,
    /// A plan file from `tersor plan --out`.
    #[arg(long)]
    pub plan: Option<PathBuf>,
    /// Choose bits and method of each matrix so that all weight files together take at most this size (`60MB`), by the measured effect of each
    /// matrix on the predictions for the calibration text; without --calib, for a text that is built in. A stopped run continues where it was.
    #[arg(long, value_parser = bytes, conflicts_with_all = ["task", "merge", "stats"])]
    pub budget: Option<u64>,
    /// Like --budget, for a maximum number of bits per weight, embedding and head included.
    #[arg(long, conflicts_with_all = ["task", "merge", "stats"])]
    pub bits: Option<f64>,
    /// Output directory.
    #[arg(long)]
    pub out: PathBuf,
    /// Calibration data.
    #[command(flatten)]
    pub calibration: Calibration,
    /// Tokens per window [default: the smaller of 512 and the model's maximum].
    #[arg(long)]
    pub ctx: Option<usize>,
    /// Do task K of the list in `plan --json` only. Any process may do any task once the tasks in its `after` list are done.
    #[arg(long, conflicts_with = "merge")]
    pub task: Option<usize>,
    /// Merge the results of all tasks into the output.
    #[arg(long)]
    pub merge: bool,
    /// Accept a model of unknown architecture; its matrices are found by name patterns.
    #[arg(long)]
    pub generic: bool,
    /// Seed of all random numbers.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// `tersor eval`
#[derive(clap::Args, Debug)]
pub struct Eval {
    /// A model directory, a `.gguf` file, or an output of `compress`.
    pub model: PathBuf,
    /// Evaluation text, for a decoder. Without --text, --sentences and --task, the matrices are compared with those of --against; the models may then
    /// have any architecture.
    #[arg(long, required_unless_present_any = ["sentences", "task", "against"], conflicts_with = "sentences")]
    pub text: Option<PathBuf>,
    /// Sentences, one per line, for an encoder; its embeddings are compared with those of --against.
    #[arg(long, requires = "against", conflicts_with = "task")]
    pub sentences: Option<PathBuf>,
    /// Prompts with answers, for a decoder: on each line a JSON object with `prompt` and `answer`. Counts the greedy continuations that are the
    /// answer. With --text or alone.
    #[arg(long)]
    pub task: Option<PathBuf>,
    /// Tokens per window [default: the smaller of 512 and the model's maximum].
    #[arg(long)]
    pub ctx: Option<usize>,
    /// Number of windows; with --sentences, number of lines [default: all].
    #[arg(long)]
    pub windows: Option<usize>,
    /// Model whose predictions, embeddings or matrices are compared with.
    #[arg(long)]
    pub against: Option<PathBuf>,
    /// File for the predictions of --against, or of MODEL without it: read if it exists, written otherwise. With it, other models are compared on
    /// the same text without running the original again.
    #[arg(long, requires = "text")]
    pub reference: Option<PathBuf>,
    /// Largest size of the logits in a new file of predictions, such as 4GB; without them, evaluations with the file compute the logits again.
    #[arg(long, value_name = "BYTES", value_parser = bytes, default_value = "0")]
    pub reference_logits: u64,
    /// Measure also how far bf16 activations alone move the predictions of --against, or of MODEL without it.
    #[arg(long, requires = "text")]
    pub noise_floor: bool,
    /// Form of the key-value cache: `f32`, `f16` or `int<bits>[-hadamard|-pca][-high<dimensions>|-eighth]` [default: that of the recipe].
    #[arg(long)]
    pub kv: Option<String>,
    /// Do not measure speed.
    #[arg(long)]
    pub no_speed: bool,
    /// Read each layer when it runs, so that only one layer is in memory at a time.
    #[arg(long)]
    pub stream: bool,
    /// Write the figures to a JSON file, with the names of model and recipe; `report` takes such files as rows.
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// `tersor compare`
#[derive(clap::Args, Debug)]
pub struct Compare {
    /// A model directory or a `.gguf` file.
    pub model: PathBuf,
    /// Names of recipes or TOML files, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    pub recipes: Vec<String>,
    /// Calibration data.
    #[command(flatten)]
    pub calibration: Calibration,
    /// Evaluation text.
    #[arg(long)]
    pub text: PathBuf,
    /// Tokens per window [default: the smaller of 512 and the model's maximum].
    #[arg(long)]
    pub ctx: Option<usize>,
    /// Number of windows of evaluation text [default: all].
    #[arg(long)]
    pub windows: Option<usize>,
    /// Output directory for models, figures and the HTML page [default: a new temporary directory].
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// `tersor demo`
#[derive(clap::Args, Debug)]
pub struct Demo {
    /// Output directory for models, figures and the HTML page [default: a new temporary directory].
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// `tersor report`
#[derive(clap::Args, Debug)]
pub struct Report {
    /// Output directories of `compare`, `demo` or `compress`, and files of `eval --out`.
    #[arg(required = true)]
    pub dirs: Vec<PathBuf>,
    /// The HTML file to write.
    #[arg(long)]
    pub out: PathBuf,
}

/// `tersor convert`
#[derive(clap::Args, Debug)]
pub struct Convert {
    /// A model directory, a `.gguf` file, or an output of `compress`.
    pub model: PathBuf,
    /// Output format. `f16`, `bf16`, `f32`: Hugging Face safetensors. `gguf:TYPE`: a file for llama.cpp of one type (`Q4_0`, `Q6_K`, `F16`, …), of a
    /// mixture (`Q4_K_M`, `Q5_K_M`), or with the codes of a compressed model unchanged (`exact`). `gptq`, `gptq-v2`: a compressed model for
    /// gptqmodel and transformers. `peft`: the low-rank corrections of a compressed model as a LoRA adapter, with its base model.
    #[arg(long)]
    pub to: String,
    /// Show the type of every tensor without writing anything (gguf only).
    #[arg(long)]
    pub dry_run: bool,
    /// Output file or directory.
    #[arg(long)]
    pub out: PathBuf,
}

/// `tersor verify`
#[derive(clap::Args, Debug)]
pub struct Verify {
    /// An output directory of `compress`.
    pub dir: PathBuf,
}

/// `tersor generate`
#[derive(clap::Args, Debug)]
pub struct Generate {
    /// A model directory, a `.gguf` file, or an output of `compress`.
    pub model: PathBuf,
    /// The text to continue.
    #[arg(long)]
    pub prompt: String,
    /// Maximum number of new tokens.
    #[arg(long, default_value_t = 128)]
    pub tokens: usize,
    /// Form of the key-value cache, as in `eval` [default: that of the recipe].
    #[arg(long)]
    pub kv: Option<String>,
    /// Sample from `softmax(logits / T)` [default: take the most likely token].
    #[arg(long)]
    pub temperature: Option<f32>,
    /// Seed of sampling.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}
