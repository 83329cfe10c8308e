//! The plainest way to run a model: decoded floats, canonical layout, one formula per operator and element, sums in
//! double precision, values at sites rounded to their grids. Slow and obviously right; the session is held to it.

use std::collections::BTreeMap;

use bitsmith_graph::ops::{PadMode, Window};
use bitsmith_graph::{Model, Op, QParams, Tensor, ValueId};
use bitsmith_kernels::numerics::{batch_norm_affine, scale_from_range};

use super::chain::Binary;

type Values = BTreeMap<ValueId, Tensor>;

/// All values of a model for these inputs.
pub(super) fn simulate(model: &Model, inputs: &[Tensor], with_sites: bool) -> Values {
    simulate_nudged(model, inputs, with_sites, 0.0)
}

/// [`simulate`] with so many steps of a site's grid added to its values before they are rounded.
pub(super) fn simulate_nudged(model: &Model, inputs: &[Tensor], with_sites: bool, nudge: f32) -> Values {
    let graph = &model.graph;
    let mut values: Values = graph.value_ids().filter_map(|id| Some((id, graph.constant(id)?.clone()))).collect();
    let store = |values: &mut Values, id: ValueId, tensor: Tensor| {
        let params = model.sites.get(&id).filter(|_| with_sites).and_then(|s| s.params.as_ref());
        values.insert(id, params.map_or(tensor.clone(), |p| rounded(&tensor, p, nudge)));
    };
    for (input, tensor) in graph.inputs().iter().zip(inputs) {
        store(&mut values, input.value, tensor.clone());
    }
    for node in graph.nodes() {
        let operands: Vec<Option<&Tensor>> = node.inputs.iter().map(|i| i.map(|id| &values[&id])).collect();
        let shapes: Vec<_> = operands.iter().map(|o| o.map(Tensor::shape)).collect();
        let out_shapes = node.op.infer(bitsmith_graph::op::InputShapes(&shapes)).unwrap();
        let results = apply(&node.op, &operands, &out_shapes);
        for (&id, result) in node.outputs.iter().zip(results) {
            store(&mut values, id, result);
        }
    }
    values
}

/// Gives every site without parameters the range it has on these inputs.
pub(super) fn calibrate(model: &mut Model, inputs: &[Tensor]) {
    let values = simulate(model, inputs, false);
    for (id, site) in &mut model.sites {
        if site.params.is_none() {
            let x = values[id].as_f32().unwrap();
            let (min, max) = bitsmith_kernels::numerics::min_max(x);
            let signed = min < 0.0;
            let (scale, zero) = scale_from_range(min, max, site.spec.bits, signed, false);
            site.params = Some(QParams::per_tensor(site.spec.bits, signed, scale, zero));
            site.spec = site.params.as_ref().unwrap().spec;
        }
    }
}

fn rounded(tensor: &Tensor, params: &QParams, nudge: f32) -> Tensor {
    let nudge = nudge * params.scale[0];
    let data = tensor.as_f32().unwrap().iter().map(|&v| params.decode(params.encode(v + nudge, 0), 0)).collect();
    Tensor::f32(tensor.shape(), data).unwrap()
}

/// Every index of a shape, in order.
fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    let mut out = vec![vec![]];
    for &d in shape {
        out = out.into_iter().flat_map(|i| (0..d).map(move |k| [i.as_slice(), &[k]].concat())).collect();
    }
    out
}

fn build(shape: &[usize], f: impl Fn(&[usize]) -> f32) -> Tensor {
    Tensor::f32(shape, indices(shape).iter().map(|i| f(i)).collect()).unwrap()
}

/// An element, with broadcasting; signed indices outside give nothing.
fn at(x: &Tensor, index: &[usize]) -> f32 {
    let skip = index.len() - x.shape().len();
    let offset = x.shape().iter().zip(&index[skip..]).fold(0, |n, (&d, &i)| n * d + if d == 1 { 0 } else { i });
    x.as_f32().unwrap()[offset]
}

/// The input indices along spatial axis `axis` under output index `o`, as (tap, index).
fn taps(w: &Window, axis: usize, size: &[usize], kernel: &[usize], o: usize) -> Vec<(usize, Option<usize>)> {
    let pad = w.pad(axis, size.len(), size[axis], kernel[axis]).0;
    let index = |k: usize| (o * w.stride(axis) + k * w.dilation(axis)).checked_sub(pad).filter(|&i| i < size[axis]);
    (0..kernel[axis]).map(|k| (k, index(k))).collect()
}

/// All taps of a window: (kernel index, input index or nothing).
fn window(w: &Window, x: &[usize], kernel: &[usize], o: &[usize]) -> Vec<(Vec<usize>, Option<Vec<usize>>)> {
    let mut out = vec![(vec![], Some(vec![]))];
    for axis in 0..kernel.len() {
        let along = taps(w, axis, &x[2..], kernel, o[2 + axis]);
        out = out
            .into_iter()
            .flat_map(|(k, i)| {
                along
                    .iter()
                    .map(move |(tap, index)| {
                        let next = i.as_ref().zip(*index).map(|(i, n)| [i.as_slice(), &[n]].concat());
                        ([k.as_slice(), &[*tap]].concat(), next)
                    })
                    .collect::<Vec<_>>()
            })
            .collect();
    }
    out
}

fn apply(op: &Op, inputs: &[Option<&Tensor>], shapes: &[Vec<usize>]) -> Vec<Tensor> {
    let y = &shapes[0];
    let get = |i: usize| inputs[i].unwrap();
    let x = inputs.first().copied().flatten();
    let xs = x.map_or(&[][..], Tensor::shape);
    if let Some(act) = op.activation() {
        return vec![build(y, |i| act.apply(at(get(0), i)))];
    }
    if let Some(binary) = Binary::of(op) {
        return vec![build(y, |i| binary.apply(at(get(0), i), at(get(1), i)))];
    }
    let one = match op {
        Op::Conv(conv) => {
            let (w, x) = (get(1), get(0));
            let (kernel, pixels) = (w.shape()[2..].iter().product::<usize>(), xs[2..].iter().product::<usize>());
            let (group_in, group_out) = (w.shape()[1], w.shape()[0] / conv.groups);
            let flat = |index: &[usize], dims: &[usize]| index.iter().zip(dims).fold(0, |n, (&k, &d)| n * d + k);
            let places = indices(&y[2..]);
            let mut out = vec![];
            for n in 0..y[0] {
                for o in 0..y[1] {
                    for place in &places {
                        let mut sum = 0.0;
                        for (k, inside) in
                            window(&conv.window, xs, &w.shape()[2..], &[&[n, o], place.as_slice()].concat())
                        {
                            let Some(inside) = inside else { continue };
                            let (k, pixel) = (flat(&k, &w.shape()[2..]), flat(&inside, &xs[2..]));
                            for c in 0..group_in {
                                let channel = n * xs[1] + o / group_out * group_in + c;
                                sum += f64::from(x.as_f32().unwrap()[channel * pixels + pixel])
                                    * f64::from(w.as_f32().unwrap()[(o * group_in + c) * kernel + k]);
                            }
                        }
                        out.push(sum as f32 + inputs.get(2).copied().flatten().map_or(0.0, |b| at(b, &[o])));
                    }
                }
            }
            Tensor::f32(y.clone(), out).unwrap()
        }
        Op::Gemm(gemm) => {
            let k = if gemm.trans_a { xs[0] } else { xs[1] };
            build(y, |i| {
                let a = |l| if gemm.trans_a { at(get(0), &[l, i[0]]) } else { at(get(0), &[i[0], l]) };
                let b = |l| if gemm.trans_b { at(get(1), &[i[1], l]) } else { at(get(1), &[l, i[1]]) };
                let sum: f64 = (0..k).map(|l| f64::from(a(l)) * f64::from(b(l))).sum();
                gemm.alpha * sum as f32 + inputs.get(2).copied().flatten().map_or(0.0, |c| gemm.beta * at(c, i))
            })
        }
        Op::MatMul(_) => build(y, |i| {
            let (batch, m, n) = (&i[..i.len() - 2], i[i.len() - 2], i[i.len() - 1]);
            let k = xs[xs.len() - 1];
            let own = |t: &Tensor, row, column| {
                let skip = i.len() - t.shape().len();
                at(t, &[&batch[skip..], &[row, column]].concat())
            };
            (0..k).map(|l| f64::from(own(get(0), m, l)) * f64::from(own(get(1), l, n))).sum::<f64>() as f32
        }),
        Op::BatchNormalization(bn) => build(y, |i| {
            let p = |k: usize| at(get(k), &i[1..2]);
            let (a, b) = batch_norm_affine(p(1), p(2), p(3), p(4), bn.epsilon);
            at(get(0), i) * a + b
        }),
        Op::LayerNormalization(norm) => {
            let axis = bitsmith_graph::ops::normalize_axis(norm.axis, xs.len()).unwrap();
            let n = xs[axis..].iter().product::<usize>();
            let values = get(0).as_f32().unwrap();
            let rows = values.chunks(n).flat_map(|row| {
                let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / n as f64;
                let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n as f64;
                let scale = 1.0 / (variance + f64::from(norm.epsilon)).sqrt();
                let p = |k: usize, i: usize| inputs.get(k).copied().flatten().map(|t| t.as_f32().unwrap()[i]);
                let of = move |(i, x): (usize, &f32)| {
                    let normalised = (f64::from(*x) - mean) * scale;
                    (normalised * f64::from(p(1, i).unwrap_or(1.0)) + f64::from(p(2, i).unwrap_or(0.0))) as f32
                };
                row.iter().enumerate().map(of).collect::<Vec<_>>()
            });
            Tensor::f32(y.to_vec(), rows.collect()).unwrap()
        }
        Op::MaxPool(pool) => build(y, |i| {
            let all = window(&pool.window, xs, &pool.kernel, i).into_iter().filter_map(|(_, inside)| inside);
            all.map(|s| at(get(0), &[&i[..2], s.as_slice()].concat())).fold(f32::NEG_INFINITY, f32::max)
        }),
        Op::AveragePool(pool) => build(y, |i| {
            let taps = window(&pool.window, xs, &pool.kernel, i);
            let inside: Vec<_> = taps.iter().filter_map(|(_, s)| s.as_ref()).collect();
            let sum: f64 = inside.iter().map(|s| f64::from(at(get(0), &[&i[..2], s.as_slice()].concat()))).sum();
            // A last window that only `ceil_mode` admits ends with the padded input.
            let within = |axis: usize, k: usize| {
                let (begin, end) = pool.window.pad(axis, xs.len() - 2, xs[2 + axis], pool.kernel[axis]);
                i[2 + axis] * pool.window.stride(axis) + k * pool.window.dilation(axis) < xs[2 + axis] + begin + end
            };
            let padded = taps.iter().filter(|(k, _)| k.iter().enumerate().all(|(a, &k)| within(a, k))).count();
            (sum / if pool.count_include_pad { padded } else { inside.len() } as f64) as f32
        }),
        Op::GlobalAveragePool(_) => mean(get(0), &(0..xs.len()).map(|a| a >= 2).collect::<Vec<_>>(), y),
        Op::ReduceMean(reduce) => mean(get(0), &reduce.reduced(xs.len()).unwrap(), y),
        Op::Flatten(_)
        | Op::Reshape(_)
        | Op::Squeeze(_)
        | Op::Unsqueeze(_)
        | Op::Identity(_)
        | Op::Dropout(_)
        | Op::Cast(_) => get(0).clone().reshape(y.clone()).unwrap(),
        Op::Transpose(t) => {
            let perm = t.permutation(xs.len()).unwrap();
            build(y, |i| {
                let mut from = vec![0; i.len()];
                perm.iter().zip(i).for_each(|(&axis, &k)| from[axis] = k);
                at(get(0), &from)
            })
        }
        Op::Slice(slice) => {
            let ranges = slice.per_axis(xs).unwrap();
            build(y, |i| {
                let from: Vec<_> =
                    i.iter().zip(&ranges).map(|(&k, r)| (r.0 as i64 + k as i64 * r.1) as usize).collect();
                at(get(0), &from)
            })
        }
        Op::Pad(pad) => {
            let pads = pad.per_axis(xs.len()).unwrap();
            build(y, |i| {
                let mut from = vec![];
                for (axis, &k) in i.iter().enumerate() {
                    let (k, size) = (k as i64 - pads[axis].0, xs[axis] as i64);
                    let k = match pad.mode {
                        PadMode::Constant if !(0..size).contains(&k) => return pad.value,
                        PadMode::Edge => k.clamp(0, size - 1),
                        PadMode::Reflect if k < 0 => -k,
                        PadMode::Reflect if k >= size => 2 * (size - 1) - k,
                        _ => k,
                    };
                    from.push(k as usize);
                }
                at(get(0), &from)
            })
        }
        Op::Concat(concat) => {
            let axis = bitsmith_graph::ops::normalize_axis(concat.axis, xs.len()).unwrap();
            build(y, |i| {
                let mut from = i.to_vec();
                let mut part = 0;
                while from[axis] >= get(part).shape()[axis] {
                    from[axis] -= get(part).shape()[axis];
                    part += 1;
                }
                at(get(part), &from)
            })
        }
        Op::Split(split) => {
            let axis = bitsmith_graph::ops::normalize_axis(split.axis, xs.len()).unwrap();
            let mut start = 0;
            return shapes
                .iter()
                .map(|shape| {
                    let offset = start;
                    start += shape[axis];
                    build(shape, |i| {
                        let mut from = i.to_vec();
                        from[axis] += offset;
                        at(get(0), &from)
                    })
                })
                .collect();
        }
        Op::Gather(gather) => {
            let axis = bitsmith_graph::ops::normalize_axis(gather.axis, xs.len()).unwrap();
            let (chosen, rank) = (get(1).to_ints().unwrap(), get(1).shape().len());
            build(y, |i| {
                let flat = get(1).shape().iter().zip(&i[axis..]).fold(0, |n, (&d, &k)| n * d + k);
                let k = if chosen[flat] < 0 { chosen[flat] + xs[axis] as i64 } else { chosen[flat] } as usize;
                at(get(0), &[&i[..axis], &[k], &i[axis + rank..]].concat())
            })
        }
        Op::Softmax(s) => softmax(get(0), s.axis, false),
        Op::LogSoftmax(s) => softmax(get(0), s.axis, true),
        Op::Constant(c) => c.value.clone(),
        other => panic!("{} is not simulated", other.name()),
    };
    vec![one]
}

fn mean(x: &Tensor, reduced: &[bool], y: &[usize]) -> Tensor {
    let kept: usize = y.iter().product();
    let (mut sums, mut counts) = (vec![0.0; kept], vec![0.0; kept]);
    for i in indices(x.shape()) {
        let to = i.iter().zip(reduced).zip(x.shape()).filter(|((_, r), _)| !**r).fold(0, |n, ((&k, _), &d)| n * d + k);
        sums[to] += f64::from(at(x, &i));
        counts[to] += 1.0;
    }
    Tensor::f32(y, sums.iter().zip(counts).map(|(s, n)| (s / n) as f32).collect()).unwrap()
}

fn softmax(x: &Tensor, axis: i64, log: bool) -> Tensor {
    let axis = bitsmith_graph::ops::normalize_axis(axis, x.shape().len()).unwrap();
    build(x.shape(), |i| {
        let along = |k: usize| {
            let mut j = i.to_vec();
            j[axis] = k;
            f64::from(at(x, &j))
        };
        let sum: f64 = (0..x.shape()[axis]).map(|k| (along(k) - along(i[axis])).exp()).sum();
        if log { -sum.ln() as f32 } else { (1.0 / sum) as f32 }
    })
}
