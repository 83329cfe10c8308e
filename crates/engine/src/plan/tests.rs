//! What becomes one step, and what does not.

use std::collections::BTreeMap;

use bitsmith_graph::ops::{Add, MatMul};
use bitsmith_graph::{Dim, Graph, Tensor, ValueId};

use super::{Facts, Kind, Plan, compile};
use crate::ops::{FakeQuant, Rounding};
use bitsmith_kernels::fakequant::Inside;

/// `x · w + bias`, in this order of the operands, `bias` of this shape; the product, the sum and the graph.
fn product_and_sum(bias: &[usize], bias_first: bool) -> (Graph, ValueId, ValueId) {
    let mut g = Graph::new();
    let x = g.add_input("x", vec![Dim::Batch, Dim::Fixed(3), Dim::Fixed(4)]).unwrap();
    let ones = |shape: &[usize]| Tensor::f32(shape, vec![1.0; shape.iter().product()]).unwrap();
    let w = g.add_constant("w", ones(&[4, 5])).unwrap();
    let b = g.add_constant("b", ones(bias)).unwrap();
    let product = g.add("product", MatMul, &[x, w]).unwrap();
    let sum = g.add("sum", Add, &if bias_first { [b, product] } else { [product, b] }).unwrap();
    g.set_outputs(vec![sum]);
    (g, product, sum)
}

fn planned(graph: &Graph, sites: &[ValueId], outputs: &[ValueId]) -> Plan {
    let shapes = graph.shapes(1).unwrap();
    let quant = FakeQuant { low: 0, high: 15, grad_scale: 1.0, inside: Inside::Error };
    let sites: BTreeMap<_, _> = sites.iter().map(|&id| (id, Rounding::One(quant))).collect();
    compile(&Facts { graph, shapes: &shapes, sites: &sites }, outputs).unwrap()
}

/// How many inputs each linear step has, and how many steps there are.
fn linear_steps(plan: &Plan) -> (Vec<usize>, usize) {
    let linear = plan.steps.iter().filter(|step| matches!(step.kind, Kind::Linear { .. }));
    (linear.map(|step| step.inputs.len()).collect(), plan.steps.len())
}

#[test]
fn a_weight_and_its_bias_are_one_step() {
    for bias_first in [false, true] {
        let (graph, _, sum) = product_and_sum(&[5], bias_first);
        assert_eq!(linear_steps(&planned(&graph, &[], &[sum])), (vec![3], 1));
        // The sum is rounded, not the product.
        assert_eq!(linear_steps(&planned(&graph, &[sum], &[sum])), (vec![3], 2));
    }
}

#[test]
fn products_that_something_else_sees_stay_alone() {
    let (graph, product, sum) = product_and_sum(&[5], false);
    assert_eq!(linear_steps(&planned(&graph, &[], &[product, sum])), (vec![2], 2), "an output");
    assert_eq!(linear_steps(&planned(&graph, &[product], &[sum])), (vec![2], 3), "rounded");
    let (mut graph, product, sum) = product_and_sum(&[5], false);
    let both = graph.add("both", Add, &[product, sum]).unwrap();
    graph.set_outputs(vec![both]);
    assert_eq!(linear_steps(&planned(&graph, &[], &[both])), (vec![2], 3), "read twice");
    // One number for each row is no bias.
    let (graph, _, sum) = product_and_sum(&[3, 5], false);
    assert_eq!(linear_steps(&planned(&graph, &[], &[sum])), (vec![2], 2), "another shape");
}
