//! What the command line says.

use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// Compress neural networks on a plain CPU machine.
#[derive(Parser, Debug)]
#[command(name = "tersor", version, arg_required_else_help = true)]
pub struct Args {
    /// Print one JSON object on stdout.
    #[arg(long, global = true)]
    pub json: bool,
    /// Threads to use; all processors unless given.
    #[arg(long, global = true, value_parser = threads)]
    pub threads: Option<usize>,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

fn threads(s: &str) -> Result<usize, String> {
    s.parse().ok().filter(|n| (1..=1024).contains(n)).ok_or_else(|| "must be 1 to 1024".to_string())
}

/// The verbs.
#[derive(Subcommand, Debug)]
#[allow(missing_docs)]
pub enum Verb {
    /// List what is in a model.
    Inspect(Inspect),
    /// Say what a recipe would make of a model, from headers alone.
    Plan(Plan),
    /// Gather statistics of what flows into the matrices, for `compress --stats`.
    Calibrate(Calibrate),
    /// Compress a model into a directory.
    Compress(Compress),
    /// Measure perplexity, size and speed.
    Eval(Eval),
    /// Compress with several recipes and measure each.
    Compare(Compare),
    /// Compare recipes on the model that ships with Tersor.
    Demo(Demo),
    /// Make one HTML page of the results in directories.
    Report(Report),
    /// Write a model in another format.
    Convert(Convert),
    /// Check what was written: hashes, shapes, finiteness.
    Verify(Verify),
    /// Continue a text.
    Generate(Generate),
}

/// `tersor inspect`
#[derive(clap::Args, Debug)]
pub struct Inspect {
    /// A directory, a `.gguf` file, or what `compress` wrote.
    pub model: PathBuf,
}

/// Which text calibrates; recipes that need no data read none of it.
#[derive(clap::Args, Debug, Default)]
pub struct Calibration {
    /// Calibration text.
    #[arg(long)]
    pub calib: Option<PathBuf>,
    /// Windows of calibration text; of an encoder's, lines.
    #[arg(long, default_value_t = 128)]
    pub calib_windows: usize,
    /// Statistics that `calibrate` wrote (all shards), or an importance matrix of llama.cpp, instead of a text.
    #[arg(long, value_delimiter = ',', conflicts_with = "calib")]
    pub stats: Vec<PathBuf>,
    /// Most memory to take (`300MB`, `2GiB`); hidden states go to disk where that helps.
    #[arg(long, value_parser = bytes)]
    pub max_memory: Option<u64>,
}

/// A number of bytes: `1500000`, `300MB`, `1.5GiB`.
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
    /// A directory or a `.gguf` file.
    pub model: PathBuf,
    /// Name of a recipe, or a TOML file: what it needs is gathered.
    #[arg(long)]
    pub recipe: String,
    /// Calibration text.
    #[arg(long)]
    pub text: PathBuf,
    /// Windows of it; for an encoder, lines.
    #[arg(long, default_value_t = 128)]
    pub windows: usize,
    /// Tokens of a window; the smaller of 512 and the model's maximum unless given.
    #[arg(long)]
    pub ctx: Option<usize>,
    /// Only part I of N, counted from 1; `compress --stats` takes the files of all parts.
    #[arg(long, value_parser = shard)]
    pub shard: Option<(usize, usize)>,
    /// The file of statistics.
    #[arg(long)]
    pub out: PathBuf,
    /// Most memory to take (`300MB`, `2GiB`); hidden states go to disk where that helps.
    #[arg(long, value_parser = bytes)]
    pub max_memory: Option<u64>,
    /// Seed of the samples.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

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
    /// A directory or a `.gguf` file.
    pub model: PathBuf,
    /// Name of a recipe, or a TOML file.
    #[arg(long)]
    pub recipe: Option<String>,
    /// Choose a method and bits for each matrix, so that all weight files together take at most this (`60MB`): by what each matrix does to the
    /// predictions on the calibration text.
    #[arg(long, value_parser = bytes)]
    pub budget: Option<u64>,
    /// The same, for at most so many bits a weight, embedding and head included.
    #[arg(long)]
    pub bits: Option<f64>,
    /// Instead, what every tensor would become in a file for llama.cpp: `gguf:TYPE`, as `convert --to` takes it, fall-backs included.
    #[arg(long, conflicts_with_all = ["measured", "out"])]
    pub to: Option<String>,
    /// Keep what was measured for the budget in this file, or take it from there: other budgets for the same model and text then cost nothing.
    #[arg(long, conflicts_with = "recipe")]
    pub measured: Option<PathBuf>,
    /// Calibration.
    #[command(flatten)]
    pub calibration: Calibration,
    /// Tokens of a window.
    #[arg(long)]
    pub ctx: Option<usize>,
    /// Write the plan to a file, for `compress --plan`; under a name that ends in `.toml`, its recipe alone.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Take a model of unknown architecture, by name patterns.
    #[arg(long)]
    pub generic: bool,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// `tersor compress`
#[derive(clap::Args, Debug)]
pub struct Compress {
    /// A directory or a `.gguf` file.
    pub model: PathBuf,
    /// Name of a recipe, or a TOML file.
    #[arg(long, required_unless_present = "plan", conflicts_with = "plan")]
    pub recipe: Option<String>,
    /// A plan that `tersor plan --out` wrote.
    #[arg(long)]
    pub plan: Option<PathBuf>,
    /// Where the result goes.
    #[arg(long)]
    pub out: PathBuf,
    /// Calibration.
    #[command(flatten)]
    pub calibration: Calibration,
    /// Tokens of a window.
    #[arg(long)]
    pub ctx: Option<usize>,
    /// Do only task K of those that `plan --json` lists; any process may do any of them, in an order that it allows.
    #[arg(long, conflicts_with = "merge")]
    pub task: Option<usize>,
    /// Put together what the tasks have made.
    #[arg(long)]
    pub merge: bool,
    /// Take a model of unknown architecture, by name patterns.
    #[arg(long)]
    pub generic: bool,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// `tersor eval`
#[derive(clap::Args, Debug)]
pub struct Eval {
    /// A directory, a `.gguf` file, or what `compress` wrote.
    pub model: PathBuf,
    /// Evaluation text, for a decoder.
    #[arg(long, required_unless_present = "sentences", conflicts_with = "sentences")]
    pub text: Option<PathBuf>,
    /// Sentences, a line each, for an encoder: how close its embeddings are to those of `--against`.
    #[arg(long, requires = "against")]
    pub sentences: Option<PathBuf>,
    /// Tokens of a window; the smaller of 512 and the model's maximum unless given.
    #[arg(long)]
    pub ctx: Option<usize>,
    /// Windows; all of the text unless given. Of sentences: lines.
    #[arg(long)]
    pub windows: Option<usize>,
    /// Compare predictions with this model's.
    #[arg(long)]
    pub against: Option<PathBuf>,
    /// Form of the key-value cache: `f32`, `f16` or `int<bits>[-hadamard|-pca][-high<dimensions>|-eighth]`; as the recipe says unless given.
    #[arg(long)]
    pub kv: Option<String>,
    /// Measure no speed.
    #[arg(long)]
    pub no_speed: bool,
    /// Read each layer when it runs, so that one is in memory at a time.
    #[arg(long)]
    pub stream: bool,
}

/// `tersor compare`
#[derive(clap::Args, Debug)]
pub struct Compare {
    /// A directory or a `.gguf` file.
    pub model: PathBuf,
    /// Recipes, by name or TOML file.
    #[arg(long, value_delimiter = ',', required = true)]
    pub recipes: Vec<String>,
    /// Calibration.
    #[command(flatten)]
    pub calibration: Calibration,
    /// Evaluation text.
    #[arg(long)]
    pub text: PathBuf,
    /// Tokens of a window; the smaller of 512 and the model's maximum unless given.
    #[arg(long)]
    pub ctx: Option<usize>,
    /// Windows of evaluation text; all of it unless given.
    #[arg(long)]
    pub windows: Option<usize>,
    /// Where models, figures and the page go; a new temporary directory unless given.
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// `tersor demo`
#[derive(clap::Args, Debug)]
pub struct Demo {
    /// Where models, figures and the page go; a new temporary directory unless given.
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// `tersor report`
#[derive(clap::Args, Debug)]
pub struct Report {
    /// What `compare`, `demo` or `compress` wrote.
    #[arg(required = true)]
    pub dirs: Vec<PathBuf>,
    /// The page.
    #[arg(long)]
    pub out: PathBuf,
}

/// `tersor convert`
#[derive(clap::Args, Debug)]
pub struct Convert {
    /// A directory, a `.gguf` file, or what `compress` wrote.
    pub model: PathBuf,
    /// `f16`, `bf16` or `f32`: plain Hugging Face safetensors. `gguf:TYPE`: a file for llama.cpp, of one type (`Q4_0`, `Q6_K`, `F16`, …), of a
    /// mixture (`Q4_K_M`, `Q5_K_M`), or with the codes of what was compressed as they are (`exact`). `gptq`, `gptq-v2`: what `compress` wrote, as
    /// gptqmodel and transformers load it. `peft`: corrections of low rank as a LoRA adapter, beside the base model.
    #[arg(long)]
    pub to: String,
    /// Only say what every tensor would become.
    #[arg(long)]
    pub dry_run: bool,
    /// Where the result goes.
    #[arg(long)]
    pub out: PathBuf,
}

/// `tersor verify`
#[derive(clap::Args, Debug)]
pub struct Verify {
    /// What `compress` wrote.
    pub dir: PathBuf,
}

/// `tersor generate`
#[derive(clap::Args, Debug)]
pub struct Generate {
    /// A directory, a `.gguf` file, or what `compress` wrote.
    pub model: PathBuf,
    /// The text to continue.
    #[arg(long)]
    pub prompt: String,
    /// Most new tokens.
    #[arg(long, default_value_t = 128)]
    pub tokens: usize,
    /// Form of the key-value cache; as the recipe says unless given.
    #[arg(long)]
    pub kv: Option<String>,
    /// Draw from `softmax(logits / T)`; the likeliest token unless given.
    #[arg(long)]
    pub temperature: Option<f32>,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}
