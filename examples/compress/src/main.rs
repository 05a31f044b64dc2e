use tersor::core::{Context, Result};
use tersor::pipeline::{Pipeline, Text, evaluate};

fn main() -> Result<()> {
    let model = std::env::args().nth(1).unwrap_or("models/smollm2-135m.gguf".into());
    let out = std::env::args().nth(2).unwrap_or("smollm2-4-bit".into());
    let (kinds, cx, text) = (tersor::kinds(), Context::new(), Text::file("examples/data/wiki-calib.txt"));
    Pipeline::open(&model, "w4-g128-gptq", kinds)?.data(text).plan(&cx)?.compress(out.as_ref(), &cx)?;
    let (text, options) = (Text::file("examples/data/wiki-eval.txt"), Default::default());
    let found = evaluate::decoder(out.as_ref(), &text, None, &options, kinds, &cx)?;
    println!("perplexity {:.3} at {:.2} bits per weight", found.perplexity, found.bits_per_weight);
    Ok(())
}
