//! Properties of round-to-nearest, for random matrices, grids and widths.

use proptest::prelude::*;
use tersor_core::method::ROW_UNIT;
use tersor_core::{
    Bits, Check, Context, DType, Error, Exec, GroupSize, Input, Isa, LinearOp, MatView, MatViewMut, MemTensors, Method,
    Registry, RowSlot, StatSet, Write,
};
use tersor_groupwise::{Clip, Grid, GroupSpec, GroupedLinear, Rtn, registry};

fn values(n: usize, salt: u64) -> Vec<f32> {
    let mut state = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 40) as f32 / 8388608.0 - 1.0) * 3.0
        })
        .collect()
}

fn any_rtn() -> impl Strategy<Value = Rtn> {
    let grid = prop_oneof![Just(Grid::Asym), Just(Grid::SymFull), Just(Grid::SymNarrow)];
    let dtype = prop_oneof![Just(DType::F16), Just(DType::BF16), Just(DType::F32)];
    let clip = prop_oneof![Just(Clip::None), Just(Clip::Search { norm: 2.4 })];
    (2u32..=8, 0usize..40, grid, dtype, clip).prop_map(|(bits, group, grid, dtype, clip)| {
        let rtn = Rtn::new().bits(bits).grid(grid).scales(dtype).clip(clip);
        match group {
            0 => rtn.per_tensor(),
            1 => rtn.per_channel(),
            n => rtn.group(n),
        }
    })
}

fn bytes(op: &dyn LinearOp) -> MemTensors {
    let mut file = MemTensors::new();
    op.save("w", &mut file).unwrap();
    file
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn plan_bits_and_bytes_agree_and_files_reopen(rtn in any_rtn(), rows in 0usize..9, cols in 0usize..70, salt: u64) {
        let w = values(rows * cols, salt);
        let m = MatView::new(&w, [rows, cols]).unwrap();
        let method = rtn.check().unwrap();
        let op = rtn.quantize(&m).unwrap().0;
        let file = bytes(&op);
        let layout = method.layout([rows, cols]).unwrap();
        prop_assert!(layout.exact);
        prop_assert_eq!(layout.bits().unwrap(), op.storage_bits());
        prop_assert_eq!(op.storage_bits(), file.bytes() as u64 * 8);
        if rows * cols == 0 {
            prop_assert_eq!(op.storage_bits(), 0);
            prop_assert_eq!(op.bits_per_weight(), 0.0);
        }
        let again = registry().load(&op.spec(), "w", &file).unwrap();
        prop_assert_eq!(bytes(&*again), file);
        let (mut a, mut b) = (vec![0f32; w.len()], vec![0f32; w.len()]);
        op.decompress_rows(0..rows, &mut a, &Exec::new()).unwrap();
        again.decompress_rows(0..rows, &mut b, &Exec::new()).unwrap();
        prop_assert_eq!(a, b);
    }

    #[test]
    fn requantizing_dequantized_weights_is_exact(rtn in any_rtn(), rows in 1usize..6, cols in 1usize..70, salt: u64) {
        let w = values(rows * cols, salt);
        let op = rtn.quantize(&MatView::new(&w, [rows, cols]).unwrap()).unwrap().0;
        let mut back = vec![0f32; w.len()];
        op.decompress_rows(0..rows, &mut back, &Exec::new()).unwrap();
        prop_assert_eq!(op.requantize(&back, Isa::detect()).unwrap(), op);
    }

    #[test]
    fn without_clipping_the_error_is_half_a_step(bits in 2u32..=8, full in any::<bool>(), group in 2usize..40, cols in 1usize..70, salt: u64) {
        let w = values(3 * cols, salt);
        let grid = if full { Grid::SymFull } else { Grid::Asym };
        let op = Rtn::new().bits(bits).group(group).grid(grid).scales(DType::F32).quantize(&MatView::new(&w, [3, cols]).unwrap()).unwrap().0;
        let mut back = vec![0f32; w.len()];
        op.decompress_rows(0..3, &mut back, &Exec::new()).unwrap();
        let groups = cols.div_ceil(group.min(cols));
        for (i, (a, b)) in w.iter().zip(&back).enumerate() {
            let scale = op.scales()[i / cols * groups + i % cols / group.min(cols)];
            // Asymmetric: rounding the zero to a code may shift one end of the range by another half step.
            let steps = if full { 0.5001 } else { 1.0001 };
            prop_assert!((a - b).abs() <= scale * steps, "{a} came back as {b} with a step of {scale}");
        }
    }

    #[test]
    fn applying_equals_multiplying_by_decompressed_weights(rtn in any_rtn(), rows in 1usize..200, cols in 1usize..50, tokens in 0usize..6, salt: u64) {
        let w = values(rows * cols, salt);
        let op = rtn.quantize(&MatView::new(&w, [rows, cols]).unwrap()).unwrap().0;
        let mut back = vec![0f32; w.len()];
        op.decompress_rows(0..rows, &mut back, &Exec::new()).unwrap();
        let x = values(tokens * cols, salt ^ 77);
        let mut y = vec![1f32; tokens * rows];
        let input = Input::new(&x, [tokens, cols]).unwrap();
        op.apply(&input, MatViewMut::new(&mut y, [tokens, rows]).unwrap(), Write::Set, &Exec::new()).unwrap();
        let once = y.clone();
        op.apply(&input, MatViewMut::new(&mut y, [tokens, rows]).unwrap(), Write::Add, &Exec::serial()).unwrap();
        for t in 0..tokens {
            for r in 0..rows {
                let want: f64 = (0..cols).map(|c| f64::from(x[t * cols + c]) * f64::from(back[r * cols + c])).sum();
                prop_assert!((f64::from(once[t * rows + r]) - want).abs() < 1e-3);
                prop_assert!((f64::from(y[t * rows + r]) - 2.0 * want).abs() < 2e-3);
            }
        }
    }

    #[test]
    fn blocks_of_any_multiple_of_64_rows_write_the_same_bytes(bits in 2u32..=8, units in 1usize..4, rows in 1usize..300, cols in 1usize..20, salt: u64) {
        let w = values(rows * cols, salt);
        let m = MatView::new(&w, [rows, cols]).unwrap();
        let method = Rtn::new().bits(bits).group(8).check().unwrap();
        let cx = Context::new();
        let prepared = method.prepare(&StatSet::none(), &cx).unwrap();
        let mut cut = MemTensors::new();
        let mut error = 0.0;
        for first in (0..rows).step_by(units * ROW_UNIT) {
            let last = (first + units * ROW_UNIT).min(rows);
            let done = prepared.compress(&m, first..last, &cx).unwrap();
            done.op.save_block("w", RowSlot { first, total: rows }, &mut cut).unwrap();
            error += done.report.squared_error;
        }
        let whole = prepared.compress(&m, 0..rows, &cx).unwrap();
        prop_assert_eq!(bytes(&*whole.op), cut);
        prop_assert!((whole.report.squared_error - error).abs() <= 1e-9 * error.max(1.0));
    }
}

#[test]
fn one_two_and_three_threads_write_the_same_bytes() {
    let (rows, cols) = (700, 130);
    let w = values(rows * cols, 5);
    let m = MatView::new(&w, [rows, cols]).unwrap();
    let run = |n: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        pool.install(|| bytes(&Rtn::new().bits(3).group(64).clip(Clip::Search { norm: 2.4 }).quantize(&m).unwrap().0))
    };
    assert_eq!(run(1), run(2));
    assert_eq!(run(1), run(3));
}

#[test]
fn any_memory_layout_gives_the_same_bytes() {
    use tersor_core::ndarray::{Array2, s};
    let a = Array2::from_shape_fn((20, 30), |(r, c)| ((r * 30 + c) as f32 * 0.3).sin());
    let rtn = Rtn::new().bits(4).group(8);
    for v in [a.view(), a.t(), a.slice(s![..;-1, ..;2]), a.slice(s![3..9, ..;-3])] {
        let copy = v.as_standard_layout().into_owned();
        assert_eq!(rtn.quantize(&v).unwrap().0, rtn.quantize(&copy).unwrap().0);
        let halves = copy.mapv(tersor_half);
        let widened = halves.mapv(|h| h.to_f32());
        assert_eq!(rtn.quantize(&halves).unwrap().0, rtn.quantize(&widened).unwrap().0);
    }
}

fn tersor_half(v: f32) -> half::f16 {
    half::f16::from_f32(v)
}

#[test]
fn bad_values_and_parameters_are_refused_by_name() {
    let mut w = values(12, 1);
    w[7] = f32::INFINITY;
    let e = Rtn::new().quantize(&MatView::new(&w, [3, 4]).unwrap()).unwrap_err();
    assert!(matches!(e, Error::NonFinite { row: 1, col: 3, .. }), "{e}");
    let w = [1e-9f32, 0.0, 1.0, 2.0];
    let e = Rtn::new().group(2).quantize(&MatView::new(&w, [1, 4]).unwrap()).unwrap_err();
    assert!(matches!(e, Error::ScaleRange { row: 0, group: 0, .. }), "{e}");
    assert!(e.to_string().contains("f32"), "it names the way out: {e}");
    for bits in [0, 1, 9, 64] {
        assert!(Rtn::new().bits(bits).check().is_err());
    }
    assert!(Rtn::new().group(0).check().is_err());
    assert!(Rtn::new().clip(Clip::Search { norm: f32::NAN }).check().is_err());
    assert!(Rtn::new().scales(DType::I8).check().is_err());
    let wide = Rtn::new().group(1000).quantize(&MatView::new(&[1f32, 2.0], [1, 2]).unwrap()).unwrap().0;
    assert_eq!(wide.scales().len(), 1, "a group wider than the row is the row");
}

#[test]
fn zeros_come_back_as_zeros() {
    for grid in [Grid::Asym, Grid::SymFull, Grid::SymNarrow] {
        let w = [0.0f32, -0.0, 0.0, 1.0, 5.0, -2.0];
        let op = Rtn::new().bits(3).group(3).grid(grid).quantize(&MatView::new(&w, [1, 6]).unwrap()).unwrap().0;
        let mut back = [9f32; 6];
        op.decompress_rows(0..1, &mut back, &Exec::new()).unwrap();
        assert_eq!(back[..3].iter().map(|v| v.to_bits()).collect::<Vec<_>>(), [0, 0, 0]);
    }
}

#[test]
fn broken_files_are_refused() {
    let op = Rtn::new().bits(4).group(4).quantize(&MatView::new(&values(16, 2), [2, 8]).unwrap()).unwrap().0;
    let file = bytes(&op);
    let mut spec = op.spec();
    spec.shape = [3, 8];
    assert!(registry().load(&spec, "w", &file).is_err(), "another shape");
    assert!(registry().load(&op.spec(), "v", &file).is_err(), "another name");
    let e = Registry::new().load(&op.spec(), "w", &file).map(|_| ()).unwrap_err();
    assert!(e.to_string().contains(GroupedLinear::KIND), "an unknown kind is named: {e}");
    use tersor_core::{TensorInfo, TensorSink};
    let mut bad = file.clone();
    let info = TensorInfo { dtype: DType::F16, shape: vec![2, 2] };
    bad.write_rows("w.scales", &info, 1, &[0x00, 0x7c, 0x00, 0x3c]).unwrap();
    assert!(matches!(registry().load(&op.spec(), "w", &bad), Err(Error::Tensor { .. })), "an infinite scale");
    assert_eq!(GroupSize::Channel.count(8), 1);
    assert!(Bits::new(9).is_err());
}

#[test]
fn a_pool_inside_a_pool_and_a_cancelled_context() {
    let w = values(300 * 40, 3);
    let m = MatView::new(&w, [300, 40]).unwrap();
    let method = Rtn::new().bits(3).group(16).check().unwrap();
    let pool = |n: usize| std::sync::Arc::new(rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
    let run = |cx: &Context| method.prepare(&StatSet::none(), cx)?.compress(&m, 0..300, cx);
    let plain = bytes(&*run(&Context::new()).unwrap().op);
    let inner = Context::new().with_pool(pool(2));
    assert_eq!(bytes(&*pool(2).install(|| run(&inner)).unwrap().op), plain);
    assert_eq!(bytes(&*run(&Context::new().with_pool(pool(64))).unwrap().op), plain);
    inner.cancel.cancel();
    assert!(matches!(run(&inner), Err(Error::Cancelled)));
}

#[test]
fn bytes_at_any_alignment_widen_alike() {
    let halves: Vec<u8> = (0..66u16).flat_map(|i| (0x3c00 + i * 7).to_le_bytes()).collect();
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        let n = 128 / dtype.size();
        let mut want = vec![0f32; n];
        dtype.widen_bytes(&halves[..128], &mut want).unwrap();
        for shift in 1..5 {
            let mut moved = vec![0u8; shift];
            moved.extend(&halves[..128]);
            let mut got = vec![0f32; n];
            dtype.widen_bytes(&moved[shift..], &mut got).unwrap();
            assert_eq!(
                got.iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
                want.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
            );
        }
    }
}

#[test]
fn importance_weights_the_clip_search() {
    use tersor_core::StatNeeds;
    let (rows, cols) = (40, 96);
    let w = values(rows * cols, 5);
    // A few features carry nearly all of the input.
    let squares: Vec<f64> = (0..cols).map(|i| if i % 9 == 0 { 900.0 } else { 0.5 }).collect();
    let stats = StatSet::from_squares(squares.clone(), 10).unwrap();
    let cx = Context::new();
    let m = MatView::new(&w, [rows, cols]).unwrap();
    let error = |importance: bool, clip: Clip| {
        let rtn = Rtn::new().bits(3).group(32).clip(clip).importance(importance).check().unwrap();
        assert_eq!(rtn.needs(), StatNeeds { squares: importance, ..StatNeeds::default() });
        let done = rtn.prepare(&stats, &cx).unwrap().compress(&m, 0..rows, &cx).unwrap();
        let mut back = vec![0f32; rows * cols];
        done.op.decompress_rows(0..rows, &mut back, &Exec::new()).unwrap();
        // In parts of rows, the same.
        let whole = bytes(&*done.op);
        let part = rtn.prepare(&stats, &cx).unwrap().compress(&m, 0..rows, &cx).unwrap();
        assert_eq!(bytes(&*part.op), whole);
        w.iter().zip(&back).enumerate().map(|(i, (a, b))| squares[i % cols] * f64::from(a - b).powi(2)).sum::<f64>()
    };
    let search = Clip::Search { norm: 2.0 };
    let (weighted, alike, none) = (error(true, search), error(false, search), error(false, Clip::None));
    assert!(weighted < 0.9 * alike && alike < none, "{weighted} {alike} {none}");
    // What it asks for must be there, and fit.
    let rtn = Rtn::new().bits(3).clip(search).importance(true).check().unwrap();
    assert!(matches!(rtn.prepare(&StatSet::none(), &cx), Err(Error::Missing { .. })));
    let sample = StatSet::new(cols, StatNeeds { sample: 1, ..StatNeeds::default() }, 0, 0).unwrap();
    assert!(rtn.prepare(&sample, &cx).is_err());
    let narrow = StatSet::from_squares(vec![1.0; 5], 1).unwrap();
    assert!(rtn.prepare(&narrow, &cx).unwrap().compress(&m, 0..rows, &cx).is_err());
    assert!(Rtn::new().importance(true).check().is_err());
}

#[test]
fn groups_that_kernels_do_not_support_are_refused_by_layouts() {
    let cols = 80_000;
    let layout = |group: usize| {
        let rtn = Rtn::new().group(group).check().unwrap().layout([4, cols]);
        let gptq = tersor_groupwise::Gptq::new().group(group).check().unwrap().layout([4, cols]);
        let dgq = tersor_groupwise::Dgq::new().group(group).check().unwrap().layout([4, cols]);
        [rtn, gptq, dgq]
    };
    for found in layout(40_000) {
        assert!(matches!(found, Err(Error::Param(_))), "{found:?}");
    }
    assert!(layout(32_768).iter().chain(&layout(cols)).all(|l| l.is_ok()));
}

#[test]
fn coders_refuse_a_sweep_of_another_matrix() {
    use tersor_core::{Ahead, ColumnCoder};
    use tersor_groupwise::coder::{GroupCoder, Groups};
    let spec = GroupSpec::new(4, GroupSize::size(2).unwrap(), Grid::Asym, DType::F16, Clip::None).unwrap();
    let w: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let mut coder = GroupCoder::new(spec, Groups::Dynamic, &w, 4, 0, Isa::detect()).unwrap();
    assert!(matches!(coder.begin(Some(&[0, 1, 2])), Err(Error::Shape { .. })));
    assert!(coder.begin(Some(&[0, 1, 2, 9])).is_err() && coder.begin(Some(&[0, 1, 2, 2])).is_err());
    coder.begin(None).unwrap();
    let (tile, mut out) = (vec![1f32; 12], vec![0f32; 3]);
    let ahead =
        |rows: usize, cols: usize| Ahead::new(&tile[..rows * cols], 0..cols, &w[..rows * cols], [rows, cols]).unwrap();
    assert!(matches!(coder.code(0..4, 0, &ahead(4, 3), &mut [0.0; 4]), Err(Error::Range { .. })));
    assert!(matches!(coder.code(0..3, 4, &ahead(3, 4), &mut out), Err(Error::Range { .. })));
    assert!(matches!(coder.code(0..3, 0, &ahead(3, 2), &mut out), Err(Error::Shape { .. })));
    assert!(matches!(coder.code(0..2, 0, &ahead(3, 4), &mut out), Err(Error::Shape { .. })));
    assert!(matches!(coder.code(0..3, 0, &ahead(3, 4), &mut out[..2]), Err(Error::Shape { .. })));
    assert!(coder.code(0..3, 0, &ahead(3, 4), &mut out).is_ok());
}

/// This crate exports all names that a custom coder or rewrite needs.
#[test]
fn one_crate_exports_all_names() {
    use tersor_groupwise as one;
    fn named<T: ?Sized>() {}
    named::<dyn one::Rewrite>();
    named::<dyn one::ColumnCoder>();
    named::<dyn one::RowSource>();
    named::<dyn one::TensorSource>();
    named::<(one::Site, one::Changes, one::Mask, one::OpSpec, one::ActQuant, one::HessianFactor)>();
    named::<(one::Masked<'_>, one::Sweep<'_>)>();
    fn element<T: one::Element>() {}
    element::<f32>();
}
