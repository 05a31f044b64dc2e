//! Errors of constructors: values that a stored form cannot hold, and parts whose shapes differ.

use std::ops::Range;

use tersor_kernels::affine::Affine;
use tersor_operators::*;

fn dense(shape: [usize; 2]) -> Box<dyn LinearOp> {
    let values = (0..shape[0] * shape[1]).map(|i| (i as f32 * 0.7).sin()).collect();
    Box::new(Dense::new(values, shape, DType::F32).unwrap())
}

fn compress(method: &dyn Method, w: &[f32], shape: [usize; 2], stats: &StatSet) -> Result<Box<dyn LinearOp>> {
    let cx = Context::new();
    let view = MatView::new(w, shape)?;
    Ok(method.prepare(stats, &cx)?.compress(&view, 0..shape[0], &cx)?.op)
}

#[test]
fn weights_that_become_infinite_in_a_narrow_type() {
    let w = [1.0, 2.0, 3.0, f32::MAX];
    for dtype in [DType::F16, DType::BF16] {
        let e = Dense::new(w.to_vec(), [2, 2], dtype).err().unwrap();
        assert!(matches!(e, Error::NonFinite { row: 1, col: 1, .. }), "{e}");
        let e = compress(&Cast::new(dtype).unwrap(), &w, [2, 2], &StatSet::none()).err().unwrap();
        assert!(matches!(e, Error::NonFinite { row: 1, col: 1, .. }), "{e}");
    }
    // The largest value that rounds to a finite one.
    let largest = f32::from_bits(0x7f7f_7fff);
    assert!(Dense::new(vec![largest, -largest], [1, 2], DType::BF16).is_ok());
    assert!(Dense::new(w.to_vec(), [2, 2], DType::F32).is_ok());
}

#[test]
fn quantizers_of_activations_must_fit_their_operator() {
    let wrapped = |act: Result<ActQuant, ParamError>, op| QuantizedInputs::new(act.unwrap(), op);
    let e = wrapped(ActQuant::channels(8, vec![0.1; 9]), dense([2, 3])).err().unwrap();
    assert!(matches!(e, Error::Shape { .. }), "{e}");
    assert!(matches!(wrapped(ActQuant::asymmetric(8, 2), dense([2, 3])), Err(Error::Shape { .. })));
    // An offset of whole tokens is added after the operator, which must be linear.
    let inner = || Box::new(wrapped(ActQuant::per_token(4), dense([2, 4])).unwrap()) as Box<dyn LinearOp>;
    let deep = || Box::new(Permuted::new(vec![3, 2, 1, 0], inner()).unwrap()) as Box<dyn LinearOp>;
    for op in [inner(), deep()] {
        let e = wrapped(ActQuant::asymmetric(8, 1), op).err().unwrap();
        assert!(matches!(e, Error::Unsupported { .. }), "{e}");
    }
    assert!(wrapped(ActQuant::per_token(8), deep()).is_ok() && wrapped(ActQuant::asymmetric(8, 2), deep()).is_ok());
    // A file may not say so either.
    let outer = wrapped(ActQuant::asymmetric(8, 1), dense([2, 4])).unwrap();
    let (mut spec, mut file) = (outer.spec(), MemTensors::new());
    inner().save("w.op", &mut file).unwrap();
    spec.parts.insert("op".into(), inner().spec());
    assert!(matches!(registry().load(&spec, "w", &file), Err(e) if e.to_string().contains("asymmetric")));
}

#[test]
fn statistics_of_activations_must_be_of_the_matrix() {
    let method = || Box::new(Cast::new(DType::F32).unwrap());
    for channels in [false, true] {
        let plan = ActPlan::fixed(8, ActRange::Max, channels).unwrap();
        let mut stats = StatSet::new(5, plan.needs(), 0, 0).unwrap();
        stats.observe(&MatView::new(&[1f32; 10], [2, 5]).unwrap()).unwrap();
        let method = WithActivations::planned(plan, method());
        let e = compress(&method, &[1.0; 8], [2, 4], &stats).err().unwrap();
        assert!(matches!(e, Error::Shape { .. }), "{e}");
        assert!(compress(&method, &[1.0; 10], [2, 5], &stats).is_ok());
    }
    let method = WithActivations::new(ActQuant::asymmetric(8, 3).unwrap(), method());
    assert!(matches!(compress(&method, &[1.0; 8], [2, 4], &StatSet::none()), Err(Error::Shape { .. })));
}

#[test]
fn plans_made_without_a_constructor_are_checked_when_used() {
    let needs = ActPlan::fixed(8, ActRange::Mse, false).unwrap().needs().with_channel();
    let mut stats = StatSet::new(2, needs, 0, 0).unwrap();
    stats.observe(&MatView::new(&[1f32, 2.0, 3.0, 4.0], [2, 2]).unwrap()).unwrap();
    let bits = |n| Bits::new(n).unwrap();
    for p in [f64::NAN, -300.0, 50.0, 100.5, f64::INFINITY] {
        for plan in
            [ActPlan::Fixed(bits(8), ActRange::Percentile(p)), ActPlan::Channels(bits(8), ActRange::Percentile(p))]
        {
            assert!(matches!(plan.ready(&stats), Err(Error::Param(_))), "{p}");
        }
    }
    assert!(ActPlan::Fixed(bits(8), ActRange::Percentile(99.0)).ready(&stats).is_ok());
    assert!(matches!(ActPlan::Fixed(bits(1), ActRange::Max).ready(&stats), Err(Error::Param(_))));
}

fn spec(bits: u32, group: GroupSize, grid: Grid, scales: DType) -> GroupSpec {
    GroupSpec::new(bits, group, grid, scales, Clip::None).unwrap()
}

#[test]
fn grids_that_cannot_be_stored() {
    let types = [
        (DType::F16, Grid::Asym),
        (DType::BF16, Grid::SymFull),
        (DType::F32, Grid::Asym),
        (DType::E8M0, Grid::SymNarrow),
    ];
    for (dtype, grid) in types {
        let own = spec(4, GroupSize::Channel, grid, dtype);
        let made = |fit: Affine| {
            let fits = [Affine { scale: 1.0, zero: 8 }, fit];
            let codes = GroupedLinear::from_codes(own, [2, 2], &[1, 2, 3, 4], &fits);
            let round = GroupedLinear::round(own, [2, 2], &[0.0, 1.0, 0.5, -1.0], &fits, Isa::detect());
            assert_eq!(codes.is_ok(), round.is_ok());
            codes.map(|_| ())
        };
        for scale in [f32::NAN, f32::INFINITY, 0.0, -1.0] {
            let e = made(Affine { scale, zero: 8 }).unwrap_err();
            assert!(matches!(e, Error::ScaleRange { row: 1, group: 0, .. }), "{e}");
        }
        // What the type rounds is not what it holds.
        for scale in [0.1, 1e6, 1e-12] {
            assert_eq!(made(Affine { scale, zero: 8 }).is_ok(), dtype == DType::F32, "{scale} in {dtype:?}");
            if let Ok(scale) = round_scale(dtype, scale, [0, 0]) {
                assert!(made(Affine { scale, zero: 8 }).is_ok());
            }
        }
        // Symmetric grids have their zero point in the middle.
        assert_eq!(made(Affine { scale: 0.5, zero: 15 }).is_ok(), grid == Grid::Asym);
        assert!(matches!(made(Affine { scale: 0.5, zero: 16 }), Err(Error::Range { .. })));
    }
    let dual = |scale| DualLinear::new([1, 2], GroupSize::Channel, &[1, 2], vec![1], vec![0], vec![scale]);
    for scale in [0.1, 1e6, 1e-12] {
        assert!(matches!(dual(scale), Err(Error::ScaleRange { .. })), "{scale}");
    }
    assert!(dual(f16::from_f32(0.1).to_f32()).is_ok());
}

#[test]
fn groups_that_kernels_do_not_support() {
    let group = |n| GroupSize::size(n).unwrap();
    for (group, cols, fits) in [
        (group(40_000), 80_000, false),
        (group(32_769), 32_770, false),
        (group(32_768), 80_000, true),
        (group(65_536), 80_000, true),
        (group(40_000), 40_000, true),
        (GroupSize::Channel, 80_000, true),
    ] {
        let own = spec(4, group, Grid::Asym, DType::F16);
        let count = group.count(cols);
        let fit = |_: usize, _: &[f32], fits: &mut [Affine]| -> Result<()> {
            fits.fill(Affine { scale: 1.0, zero: 0 });
            Ok(())
        };
        let encoded = GroupedLinear::encode(own, [1, cols], &vec![1.0; cols], Isa::detect(), fit);
        let packed =
            GroupedLinear::from_codes(own, [1, cols], &vec![1; cols], &vec![Affine { scale: 1.0, zero: 0 }; count]);
        for op in [encoded, packed] {
            match op {
                Ok(op) => assert!(fits && op.matmul_vec(&(&vec![1f32; cols][..], [1, cols])).is_ok(), "{group:?}"),
                Err(e) => assert!(!fits && matches!(e, Error::Param(_)), "{group:?}: {e}"),
            }
        }
    }
}

#[test]
fn sizes_are_checked_before_memory_is_allocated() {
    let own = spec(4, GroupSize::Channel, Grid::Asym, DType::F16);
    let none = |_: usize, _: &[f32], _: &mut [Affine]| -> Result<()> { Ok(()) };
    let made = |shape| GroupedLinear::encode(own, shape, &[], Isa::detect(), none).map(|op| op.shape());
    assert!(matches!(made([usize::MAX / 2, 8]), Err(Error::Overflow { .. })));
    assert!(matches!(made([1 << 40, 8]), Err(Error::Shape { .. })));
    assert_eq!(made([0, 8]).unwrap(), [0, 8]);
}

#[test]
fn tasks_refuse_inputs_of_another_width() {
    let order = |n: u32| (0..n).rev().collect::<Vec<u32>>();
    let ops: [Box<dyn LinearOp>; 4] = [
        Box::new(Permuted::new(order(0), dense([2, 0])).unwrap()),
        Box::new(Permuted::new(order(4), dense([2, 4])).unwrap()),
        Box::new(ScaledInputs::new(vec![0.5; 4], dense([2, 4])).unwrap()),
        Box::new(QuantizedInputs::new(ActQuant::per_token(8).unwrap(), dense([2, 4])).unwrap()),
    ];
    for op in &ops {
        let x = Input::owned(vec![1.0; 10], [2, 5]).unwrap();
        assert!(matches!(op.task(&x, &Exec::new()), Err(Error::Shape { .. })));
    }
}

#[test]
fn rows_of_integers_decompress_to_finite_values() {
    let op = RowwiseInt8::from_parts(vec![127, -127, 64, -128], vec![f32::MAX, f32::MAX], [2, 2]).unwrap();
    let back = op.decompress().unwrap();
    let near = |found: f32, want: f64| (f64::from(found) / f64::from(f32::MAX) - want).abs() < 1e-6;
    assert!(
        near(back[0], 1.0) && near(back[1], -1.0) && near(back[2], 64.0 / 127.0) && near(back[3], -1.0),
        "{back:?}"
    );
}

/// This crate exports all names that a custom stored form or method needs.
#[test]
fn one_crate_exports_all_names() {
    struct Rows([usize; 2]);
    impl RowSource for Rows {
        fn shape(&self) -> [usize; 2] {
            self.0
        }
        fn read_rows(&self, _: Range<usize>, out: &mut [f32]) -> Result<()> {
            out.fill(<f16 as Element>::ZERO.to_f32());
            Ok(())
        }
    }
    let layout: Layout = Cast::new(DType::F16).unwrap().layout([2, 3]).unwrap();
    let ops = [dense([2, 3])];
    let ops: Vec<&dyn LinearOp> = ops.iter().map(|o| &**o).collect();
    assert_eq!((layout.bits().unwrap(), storage_bits_of(ops.iter().copied())), (96, 192));
    let (x, mut y) = (Input::owned(vec![1.0; 3], [1, 3]).unwrap(), [0f32; 2]);
    apply_all(&ops, &x, vec![MatViewMut::new(&mut y, [1, 2]).unwrap()], &Exec::new()).unwrap();
    let task: Option<Box<dyn GemmTask + '_>> = ops[0].task(&x, &Exec::new()).unwrap();
    assert!(task.is_none_or(|t| t.rows() == 2));
    let packed = integers(&x, Isa::detect(), Padding { cols: 3, group: 3, block: 4 });
    assert!(packed.is_ok() && Rows([2, 3]).shape() == [2, 3]);
    let _: Option<InputChange> = None;
}

#[test]
fn operators_that_could_not_be_loaded_are_not_saved() {
    let nested = |depth: usize| -> Box<dyn LinearOp> {
        (1..depth).fold(dense([1, 2]), |op, _| Box::new(Residual::new(op, dense([1, 2])).unwrap()))
    };
    let (mut file, limit) = (MemTensors::new(), Registry::MAX_DEPTH);
    nested(limit).save("w", &mut file).unwrap();
    assert!(registry().load(&nested(limit).spec(), "w", &file).is_ok());
    let mut none = MemTensors::new();
    assert!(matches!(nested(limit + 1).save("w", &mut none), Err(Error::Limit { .. })) && none.is_empty());
}

#[test]
fn codes_that_do_not_fit_are_refused() {
    let made = |code| DualLinear::new([1, 2], GroupSize::Channel, &[1, code], vec![1], vec![0], vec![1.0]);
    assert!(made(15).is_ok() && matches!(made(16).err(), Some(Error::Range { .. })));
}

#[test]
fn codes_beyond_the_input_are_left_unchanged() {
    // The values of fp4 do not ascend, so that codes are relabelled.
    let (map, isa) = (Map::fp4(), Isa::detect());
    let mut codes = [7u8; 6];
    map.encode(isa, &[0.1, -0.2], 1.0, &mut codes);
    assert_eq!(codes[2..], [7; 4]);
    map.encode_blocks(isa, &[0.1; 6], &[1.0], 3, &mut codes);
    assert_eq!(codes[3..], [7; 3]);
    map.encode_stochastic(isa, &[0.1], 1.0, |_| 0.5, &mut codes);
    assert_eq!(codes[3..], [7; 3]);
}

#[test]
fn one_scale_for_a_matrix_is_the_same_in_all_rows() {
    let own = spec(4, GroupSize::Tensor, Grid::SymFull, DType::F32);
    let made = |scale: fn(usize) -> f32| {
        GroupedLinear::encode(own, [2, 2], &[0.0, 1.0, 2.0, 3.0], Isa::detect(), |row, _, out| {
            out.fill(Affine { scale: scale(row), zero: 8 });
            Ok(())
        })
    };
    assert!(made(|_| 0.5).is_ok() && made(|row| 0.5 + row as f32).is_err());
}

#[test]
fn a_loaded_matrix_equals_the_saved_one_however_its_ranges_were_found() {
    let own = GroupSpec::new(4, GroupSize::Channel, Grid::Asym, DType::F16, Clip::Search { norm: 2.4 }).unwrap();
    let op = GroupedLinear::from_codes(own, [1, 2], &[1, 2], &[Affine { scale: 0.5, zero: 3 }]).unwrap();
    let mut file = MemTensors::new();
    op.save("w", &mut file).unwrap();
    let again = GroupedLinear::load(&op.spec(), "w", &file).unwrap();
    assert!(again == op);
    let both = GroupedLinear::stack(own, [2, 2], [op, again]).unwrap();
    assert_eq!(both.shape(), [2, 2]);
}

#[test]
fn a_group_of_zeros_in_a_row_of_small_weights_becomes_a_table() {
    let own = spec(4, GroupSize::size(2).unwrap(), Grid::SymFull, DType::F32);
    let params = [Affine { scale: 1.0, zero: 8 }, Affine { scale: 1e-6, zero: 8 }];
    let op = GroupedLinear::from_codes(own, [1, 4], &[8, 8, 15, 0], &params).unwrap();
    let (exec, mut out) = (Exec::serial(), [9f32; 4]);
    TableLinear::of_grouped(&op, &exec).unwrap().decompress_rows(0..1, &mut out, &exec).unwrap();
    assert_eq!(out[..2], [0.0; 2]);
    assert!((out[3] + 8e-6).abs() < 1e-7, "{out:?}");
}
