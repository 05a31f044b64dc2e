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
    /// Windows of calibration text.
    #[arg(long, default_value_t = 128)]
    pub calib_windows: usize,
}

/// `tersor plan`
#[derive(clap::Args, Debug)]
pub struct Plan {
    /// A directory or a `.gguf` file.
    pub model: PathBuf,
    /// Name of a recipe, or a TOML file.
    #[arg(long)]
    pub recipe: String,
    /// Calibration.
    #[command(flatten)]
    pub calibration: Calibration,
    /// Tokens of a window.
    #[arg(long)]
    pub ctx: Option<usize>,
    /// Write the plan to a file, for `compress --plan`.
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
    /// Evaluation text.
    #[arg(long)]
    pub text: PathBuf,
    /// Tokens of a window; the smaller of 512 and the model's maximum unless given.
    #[arg(long)]
    pub ctx: Option<usize>,
    /// Windows; all of the text unless given.
    #[arg(long)]
    pub windows: Option<usize>,
    /// Compare predictions with this model's.
    #[arg(long)]
    pub against: Option<PathBuf>,
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
    /// `f16`, `bf16` or `f32`: plain Hugging Face safetensors.
    #[arg(long)]
    pub to: String,
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
    /// Draw from `softmax(logits / T)`; the likeliest token unless given.
    #[arg(long)]
    pub temperature: Option<f32>,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}
