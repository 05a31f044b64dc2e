//! Loads a 4-bit matrix `[2, 4]` from memory and multiplies with it.
use tersor_operators::ndarray::array;
use tersor_operators::{DType, LinearOpExt, MemTensors, OpSpec, Result, TensorInfo, TensorSink, registry};

fn main() -> Result<()> {
    // The contents of a `tersor.json` and its weight file: codes 7 to 10 around the zero 8, and one scale per row.
    let spec = OpSpec::new("grouped", [2, 4]).int("bits", 4).text("group", "channel").text("grid", "sym_full");
    let spec = spec.text("scales", "F32");
    let scales: Vec<u8> = [0.5f32, 2.0].iter().flat_map(|s| s.to_le_bytes()).collect();
    let mut file = MemTensors::new();
    file.write_shared("w.codes", &TensorInfo { dtype: DType::U8, shape: vec![2, 2] }, &[0x98, 0xA7, 0x78, 0x8A])?;
    file.write_shared("w.scales", &TensorInfo { dtype: DType::F32, shape: vec![2, 1] }, &scales)?;
    let op = registry().load(&spec, "w", &file)?;
    let y = op.matmul(&array![[1.0, 2.0, 3.0, 4.0]])?;
    println!("{y}");
    assert_eq!(y, array![[3.5, 8.0]]);
    Ok(())
}
