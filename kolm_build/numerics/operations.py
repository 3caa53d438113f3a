"""The table of certified operations: a literal, for reviewers (spec/numerics.md, NUM-90 to NUM-92).

Every operation of PyTorch 2.13.0 that a portable build may reach. `tools/audit_ops.py` runs what is
exact on every instruction set; the tests hold the table against PyTorch's dispatcher.
A condition stands in brackets: ``mul.Tensor[real]``; `kolm_build.numerics.certified` explains them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

How = Literal["exact", "composed", "decomposed", "replaced", "own"]


@dataclass(frozen=True, slots=True)
class Section:
    """Operations that are certified for one reason.

    Attributes:
        title: What they do.
        how: ``exact`` (PyTorch's kernel gives the same bits everywhere), ``composed`` (it computes
            nothing itself: every step is another operation of the table), ``decomposed`` (the
            same, above autograd: it is no operation for what is below), ``replaced`` (a kernel
            of this project) or ``own`` (an operation that PyTorch does not have, a kernel of this
            project).
        why: The reason, one line.
        operators: Their names without ``aten::``, separated by white space.
    """

    title: str
    how: How
    why: str
    operators: str


SECTIONS = (
    Section(
        "views",
        "exact",
        "Another view of the same memory; nothing is computed.",
        """
        _reshape_alias _unsafe_view alias as_strided as_strided_ detach detach_ diagonal expand
        lift lift_fresh permute select.int slice.Tensor split.Tensor split_with_sizes squeeze
        squeeze.dim squeeze.dims squeeze_ squeeze_.dim squeeze_.dims t t_ transpose.int transpose_
        unbind.int unfold unsafe_split.Tensor unsafe_split_with_sizes unsqueeze unsqueeze_ view
        view.dtype
        """,
    ),
    Section(
        "memory",
        "exact",
        "Makes, resizes or fills memory with a given value.",
        """
        empty.memory_format empty_like empty_permuted empty_strided eye eye.m eye.m_out eye.out
        fill_.Scalar[fits] fill_.Tensor is_pinned is_same_size is_set_to new_empty
        new_empty_strided resize_ resize_as_ scalar_tensor[fits] set_ set_.source_Storage
        set_.source_Storage_storage_offset set_.source_Tensor tril_indices triu_indices zero_
        """,
    ),
    Section(
        "filled tensors",
        "composed",
        "Memory as above, then fill_ or zero_.",
        """
        fill.Scalar fill.Tensor full full.out full_like new_full new_ones new_zeros ones ones.out
        ones_like zeros zeros.out zeros_like
        """,
    ),
    Section(
        "ranges, made",
        "composed",
        "A new tensor, then one of this project's ranges.",
        "arange arange.out arange.start arange.start_step linspace",
    ),
    Section(
        "moving data",
        "exact",
        "Copies elements to other places, chosen by integers or booleans.",
        """
        cat cat.out constant_pad_nd diagonal_copy embedding flip gather gather.out index.Tensor
        index.Tensor_out index_copy_ index_copy.out index_fill_.int_Scalar[fits]
        index_fill_.int_Tensor index_select index_select.out masked_fill_.Scalar[fits]
        masked_fill_.Tensor masked_scatter_ masked_select masked_select.out
        repeat_interleave.Tensor roll scatter.src scatter.src_out scatter.value[fits]
        scatter.value_out[fits] scatter_.src scatter_.value[fits] stack stack.out take take.out
        tril tril.out tril_ triu triu.out triu_ where.self where.self_out
        """,
    ),
    Section(
        "moving data, in steps",
        "composed",
        "A copy, then one of the moves above.",
        """
        _to_copy clone copy diag_embed index_copy index_fill.int_Scalar index_fill.int_Tensor
        index_put index_put_ masked_fill.Scalar masked_fill.Tensor masked_scatter repeat
        select_backward select_scatter slice_backward slice_scatter
        """,
    ),
    Section(
        "converting",
        "exact",
        "Widening is exact, narrowing rounds once to nearest even; NUM-57, NUM-58, NUM-93.",
        "copy_[converts]",
    ),
    Section(
        "reading",
        "exact",
        "One element, or a comparison of all, for Python.",
        "_local_scalar_dense equal",
    ),
    Section(
        "comparisons",
        "exact",
        "True or false by IEEE comparison; nothing is rounded.",
        """
        eq.Scalar eq.Scalar_out eq.Tensor eq.Tensor_out eq_.Scalar eq_.Tensor
        ge.Scalar ge.Scalar_out ge.Tensor ge.Tensor_out ge_.Scalar ge_.Tensor
        gt.Scalar gt.Scalar_out gt.Tensor gt.Tensor_out gt_.Scalar gt_.Tensor
        isnan isnan.out isneginf isneginf.out isposinf isposinf.out
        le.Scalar le.Scalar_out le.Tensor le.Tensor_out le_.Scalar le_.Tensor
        lt.Scalar lt.Scalar_out lt.Tensor lt.Tensor_out lt_.Scalar lt_.Tensor
        ne.Scalar ne.Scalar_out ne.Tensor ne.Tensor_out ne_.Scalar ne_.Tensor
        isin.Tensor_Scalar isin.Tensor_Tensor
        signbit signbit.out
        """,
    ),
    Section(
        "infinities",
        "composed",
        "abs, then a comparison.",
        "isinf isinf.out",
    ),
    Section(
        "logic",
        "exact",
        "Booleans and bits.",
        """
        all all.all_out all.dim all.dims all.out any any.all_out any.dim any.dims any.out
        bitwise_and.Tensor bitwise_and.Tensor_out bitwise_and_.Tensor
        bitwise_left_shift.Tensor bitwise_left_shift.Tensor_out bitwise_left_shift_.Tensor
        bitwise_not bitwise_not.out bitwise_not_
        bitwise_or.Tensor bitwise_or.Tensor_out bitwise_or_.Tensor
        bitwise_right_shift.Tensor bitwise_right_shift.Tensor_out bitwise_right_shift_.Tensor
        bitwise_xor.Tensor bitwise_xor.Tensor_out bitwise_xor_.Tensor
        logical_and.out logical_not.out logical_or.out logical_xor.out
        """,
    ),
    Section(
        "logic, made",
        "composed",
        "The operations above on a new tensor, or with a number made a tensor.",
        """
        bitwise_and.Scalar bitwise_and_.Scalar bitwise_or.Scalar bitwise_or_.Scalar
        bitwise_xor.Scalar bitwise_xor_.Scalar bitwise_and.Scalar_Tensor bitwise_or.Scalar_Tensor
        bitwise_xor.Scalar_Tensor bitwise_left_shift.Scalar_Tensor bitwise_left_shift.Tensor_Scalar
        bitwise_left_shift_.Tensor_Scalar bitwise_right_shift.Scalar_Tensor
        bitwise_right_shift.Tensor_Scalar bitwise_right_shift_.Tensor_Scalar logical_and
        logical_and_ logical_not logical_not_ logical_or logical_or_ logical_xor logical_xor_
        """,
    ),
    Section(
        "counting",
        "exact",
        "Integers, summed in 64 bits or compared.",
        "bincount[integers] count_nonzero count_nonzero.dim_IntList nonzero nonzero.out",
    ),
    Section(
        "arithmetic",
        "exact",
        "One IEEE operation an element, rounded once; without complex numbers nothing contracts.",
        """
        abs[real] abs.out[real] abs_[real]
        ceil ceil.out ceil_ floor floor.out floor_ round round.out round_ trunc trunc.out trunc_
        neg neg.out neg_ sign sign.out sign_
        """,
    ),
    Section(
        "arithmetic with numbers",
        "composed",
        "The number becomes a tensor, then as above.",
        """
        add.Scalar add_.Scalar div.Scalar div_.Scalar mul.Scalar mul_.Scalar rsub.Scalar
        sub.Scalar sub_.Scalar
        """,
    ),
    Section(
        "division of integers by a number",
        "composed",
        "The number becomes a tensor, then as between tensors.",
        """
        div.Scalar_mode div_.Scalar_mode floor_divide.Scalar floor_divide_.Scalar fmod.Scalar
        fmod_.Scalar remainder.Scalar remainder.Scalar_Tensor remainder_.Scalar
        """,
    ),
    Section(
        "choosing",
        "exact",
        "The result is an operand, zero, or an operand times a number.",
        """
        clamp clamp.out clamp_ clamp_max clamp_max.out clamp_max_ clamp_min clamp_min.out
        clamp_min_ hardtanh[fits] hardtanh.out[fits] hardtanh_[fits] leaky_relu leaky_relu.out
        leaky_relu_ leaky_relu_backward leaky_relu_backward.grad_input relu relu_ threshold[fits]
        threshold.out[fits] threshold_[fits] threshold_backward threshold_backward.grad_input
        argmax argmax.out argmin argmin.out
        """,
    ),
    Section(
        "lists of tensors",
        "composed",
        "The operation of one tensor, for each in order.",
        """
        _foreach_abs _foreach_abs_ _foreach_add.List _foreach_add.Scalar _foreach_add.ScalarList
        _foreach_add_.List _foreach_add_.Scalar _foreach_add_.ScalarList _foreach_add_.Tensor
        _foreach_copy_ _foreach_div.List _foreach_div.Scalar _foreach_div.ScalarList
        _foreach_div_.List _foreach_div_.Scalar _foreach_div_.ScalarList _foreach_div_.Tensor
        _foreach_maximum_.List _foreach_mul.List _foreach_mul.Scalar _foreach_mul.ScalarList
        _foreach_mul.Tensor _foreach_mul_.List _foreach_mul_.Scalar _foreach_mul_.ScalarList
        _foreach_mul_.Tensor _foreach_neg _foreach_neg_ _foreach_sub.List _foreach_sub.Scalar
        _foreach_sub_.List _foreach_sub_.Scalar _foreach_zero_ _foreach_addcdiv_.Scalar
        _foreach_addcdiv_.ScalarList _foreach_addcmul_.Scalar _foreach_lerp_.Scalar
        _foreach_norm.Scalar _foreach_sqrt _foreach_sqrt_ _foreach_pow.ScalarAndTensor
        _foreach_reciprocal_
        """,
    ),
    Section(
        "random numbers, made",
        "composed",
        "A new tensor, then a generator of this project.",
        """
        bernoulli bernoulli.p normal.Tensor_Tensor normal.Tensor_float normal.float_Tensor
        normal.float_float rand rand.generator rand_like rand_like.generator randint
        randint.generator randint.low randint.low_generator randint_like randint_like.low_dtype
        randn randn.generator randn_like randn_like.generator randperm randperm.generator
        randperm.out
        """,
    ),
    Section(
        "grouped products",
        "composed",
        "mm for each group in order.",
        "_grouped_mm transformers::grouped_mm_fallback transformers::grouped_mm_fallback_backward",
    ),
    Section(
        "sums, rows and orders, made",
        "composed",
        "Operations of this project with default arguments.",
        "_safe_softmax mean sort sum",
    ),
    Section(
        "other names",
        "decomposed",
        "An operation of the table by another name, or with other defaults.",
        """
        __and__.Scalar __and__.Tensor __iand__.Scalar __iand__.Tensor __ior__.Scalar __ior__.Tensor
        __ixor__.Scalar __ixor__.Tensor __or__.Scalar __or__.Tensor __xor__.Scalar __xor__.Tensor
        absolute absolute.out absolute_ adjoint argsort argsort.stable argsort.stable_out
        chain_matmul chain_matmul.out clip clip.Tensor clip.Tensor_out clip.out clip_ clip_.Tensor
        concat concat.out concatenate concatenate.out divide.Scalar divide.Scalar_mode
        divide.Tensor divide.Tensor_mode divide.out divide.out_mode divide_.Scalar
        divide_.Scalar_mode divide_.Tensor divide_.Tensor_mode fix fix.out fix_ ger ger.out
        greater.Scalar greater.Scalar_out greater.Tensor greater.Tensor_out greater_.Scalar
        greater_.Tensor greater_equal.Scalar greater_equal.Scalar_out greater_equal.Tensor
        greater_equal.Tensor_out greater_equal_.Scalar greater_equal_.Tensor inner inner.out
        less.Scalar less.Scalar_out less.Tensor less.Tensor_out less_.Scalar less_.Tensor
        less_equal.Scalar less_equal.Scalar_out less_equal.Tensor less_equal.Tensor_out
        less_equal_.Scalar less_equal_.Tensor linalg_diagonal linalg_matmul linalg_matmul.out
        log_sigmoid log_sigmoid.out log_softmax.int matrix_power matrix_power.out max.other max.out
        min.other min.out moveaxis.int moveaxis.intlist msort multiply.Scalar multiply.Tensor
        multiply.out multiply_.Scalar multiply_.Tensor negative negative.out negative_
        not_equal.Scalar not_equal.Scalar_out not_equal.Tensor not_equal.Tensor_out
        not_equal_.Scalar not_equal_.Tensor outer outer.out positive relu6 relu6_ row_stack
        row_stack.out softmax.int special_erf special_erf.out special_erfc special_erfc.out
        special_exp2 special_exp2.out special_expit special_expit.out special_expm1
        special_expm1.out special_log1p special_log1p.out special_log_softmax special_logsumexp
        special_logsumexp.out special_softmax square square.out square_ std std.dim std.out
        std_mean std_mean.dim subtract.Scalar subtract.Tensor subtract.out subtract_.Scalar
        subtract_.Tensor swapaxes swapaxes_ swapdims swapdims_ true_divide.Scalar
        true_divide.Tensor true_divide.out true_divide_.Scalar true_divide_.Tensor var var.dim
        var.out var_mean var_mean.dim
        """,
    ),
    Section(
        "questions",
        "decomposed",
        "Asks for a type, a shape or one element; nothing is computed.",
        """
        _debug_has_internal_overlap _has_compatible_shallow_copy_type _is_zerotensor _version
        can_cast cudnn_is_acceptable data dim get_device is_complex is_conj is_contiguous
        is_contiguous.memory_format is_distributed is_floating_point is_inference is_leaf is_neg
        is_nonzero is_signed item numel output_nr promote_types requires_grad_ result_type.Scalar
        result_type.Scalar_Scalar result_type.Scalar_Tensor result_type.Tensor retain_grad
        retains_grad set_data size.int storage_offset stride.int sym_is_contiguous sym_numel
        sym_size.int sym_storage_offset sym_stride.int
        """,
    ),
    Section(
        "data moved above autograd",
        "decomposed",
        "Views, copies, conversions and comparisons of the table, one after another.",
        """
        _cast_Byte _cast_Char _cast_Double _cast_Float _cast_Half _cast_Int _cast_Long _cast_Short
        _dim_arange _pad_circular _shape_as_tensor _to_cpu argwhere atleast_1d atleast_1d.Sequence
        atleast_2d atleast_2d.Sequence atleast_3d atleast_3d.Sequence broadcast_tensors
        broadcast_to cartesian_prod chunk column_stack column_stack.out combinations conj
        conj_physical contiguous diag diagflat diff diff.out dsplit.array dsplit.int dstack
        dstack.out embedding_backward expand_as fft_fftshift fft_ifftshift fill_diagonal_
        flatten.using_ints flatten_dense_tensors fliplr flipud gather_backward hsplit.array
        hsplit.int hstack hstack.out index_select_backward isclose isfinite isreal mH mT
        masked_select_backward matrix_H meshgrid meshgrid.indexing movedim.int movedim.intlist
        narrow narrow.Tensor nonzero_numpy numpy_T pad pad_sequence rand.generator_out
        randn.generator_out randn.out ravel real repeat_interleave.self_Tensor
        repeat_interleave.self_int reshape reshape_as resolve_conj resolve_neg split.sizes
        take_along_dim take_along_dim.out tensor_split.indices tensor_split.sections tile to.device
        to.dtype to.dtype_layout to.other type_as unflatten.int unflatten_dense_tensors
        unsafe_chunk value_selecting_reduction_backward view_as vsplit.array vsplit.int vstack
        vstack.out where where.Scalar where.ScalarOther where.ScalarSelf
        """,
    ),
    Section(
        "written out above autograd",
        "decomposed",
        "Losses, norms, products and cells as the operations of the table.",
        """
        cosine_embedding_loss cosine_similarity cross_entropy_loss dropout dropout_ einsum
        feature_dropout feature_dropout_ gru.input gru_cell hinge_embedding_loss kl_div
        kron kron.out l1_loss layer_norm linalg_matrix_norm linalg_matrix_norm.out
        linalg_matrix_norm.str_ord linalg_matrix_norm.str_ord_out linalg_matrix_power
        linalg_matrix_power.out linalg_multi_dot linalg_multi_dot.out linalg_norm
        linalg_norm.ord_str linalg_norm.ord_str_out linalg_norm.out linalg_vecdot linalg_vecdot.out
        linear lstm.input lstm_cell margin_ranking_loss matmul matmul.out nll_loss
        nll_loss.out nll_loss_nd poisson_nll_loss rms_norm rnn_relu.input
        rnn_relu_cell rnn_tanh.input rnn_tanh_cell sum_to_size tensordot
        tensordot.out
        """,
    ),
    Section(
        "marks",
        "exact",
        "The beginning and the end of a stretch for the profiler; nothing is computed.",
        """
        profiler::_record_function_enter profiler::_record_function_enter_new
        profiler::_record_function_exit profiler::_record_function_exit._RecordFunction
        """,
    ),
    Section(
        "ranges",
        "replaced",
        "NUM-56: binary64, rounded once to the type of the result.",
        "arange.start_out linspace.out",
    ),
    Section(
        "matrix products",
        "replaced",
        "NUM-10 to NUM-13: chunks of 256 along the depth, in order.",
        """
        _addmm_activation _addmm_activation.out addmm addmm.out addmm_ addmv addmv.out addmv_
        baddbmm baddbmm.out baddbmm_ bmm bmm.out dot mm mm.out vdot
        """,
    ),
    Section(
        "sums and products of elements",
        "replaced",
        "NUM-4, NUM-54: each operation rounded once, in any storage format.",
        """
        add.Tensor[real] add.out[real] add_.Tensor[real] addcdiv[real] addcdiv.out[real]
        addcdiv_[real] addcmul[real] addcmul.out[real] addcmul_[real] div.Tensor[real]
        div.out[real] div_.Tensor[real] lerp.Scalar lerp.Scalar_out lerp.Tensor lerp.Tensor_out
        lerp_.Scalar lerp_.Tensor mul.Tensor[real] mul.out[real] mul_.Tensor[real]
        rsub.Tensor[real] sub.Tensor[real] sub.out[real] sub_.Tensor[real]
        """,
    ),
    Section(
        "integers",
        "replaced",
        "NUM-14, NUM-27 to NUM-29: exact; the least integer divided by -1 is itself.",
        """
        _int_mm _int_mm.out div.Tensor_mode div.out_mode div_.Tensor_mode floor_divide
        floor_divide.out floor_divide_.Tensor fmod.Tensor fmod.Tensor_out fmod_.Tensor histc
        histc.out remainder.Tensor remainder.Tensor_out remainder_.Tensor
        """,
    ),
    Section(
        "functions",
        "replaced",
        "NUM-50 to NUM-53: the correctly rounded value; a power within one ulp.",
        """
        cos cos.out cos_ erf erf.out erf_ erfc erfc.out erfc_ exp exp.out exp_ exp2 exp2.out
        exp2_ expm1 expm1.out expm1_ gelu gelu.out gelu_ log log.out log_ log10 log10.out log10_
        log1p log1p.out log1p_ log2 log2.out log2_ log_sigmoid_forward log_sigmoid_forward.output
        mish mish.out mish_ pow.Scalar pow.Scalar_out pow.Tensor_Scalar pow.Tensor_Scalar_out
        pow.Tensor_Tensor pow.Tensor_Tensor_out pow_.Scalar pow_.Tensor reciprocal reciprocal.out
        reciprocal_ rsqrt rsqrt.out rsqrt_ sigmoid sigmoid.out sigmoid_ silu silu.out silu_ sin
        sin.out sin_ softplus softplus.out sqrt sqrt.out sqrt_ tanh tanh.out tanh_
        """,
    ),
    Section(
        "gradients of functions",
        "replaced",
        "NUM-52: the gradient times the correctly rounded derivative.",
        """
        gelu_backward gelu_backward.grad_input log_sigmoid_backward
        log_sigmoid_backward.grad_input mish_backward sigmoid_backward
        sigmoid_backward.grad_input silu_backward silu_backward.grad_input softplus_backward
        softplus_backward.grad_input tanh_backward tanh_backward.grad_input
        """,
    ),
    Section(
        "reductions",
        "replaced",
        "NUM-20 to NUM-26: 64 lanes, blocks of 4096, one tree.",
        """
        amax amax.out amin amin.out cumsum cumsum.out cumsum_ linalg_vector_norm
        linalg_vector_norm.out logsumexp logsumexp.out max max.dim max.dim_max max.unary_out
        maximum maximum.out mean.dim mean.out min min.dim min.dim_min min.unary_out minimum
        minimum.out prod prod.dim_int prod.int_out std.correction std.correction_out
        std_mean.correction sum.IntList_out sum.dim_IntList var.correction var.correction_out
        var_mean.correction
        """,
    ),
    Section(
        "bounds that are tensors",
        "replaced",
        "NUM-25: of two zeros +0, NaN wins; PyTorch's own differ between a vector and its tail.",
        """
        clamp.Tensor clamp.Tensor_out clamp_.Tensor clamp_max.Tensor clamp_max.Tensor_out
        clamp_max_.Tensor clamp_min.Tensor clamp_min.Tensor_out clamp_min_.Tensor
        """,
    ),
    Section(
        "rows",
        "replaced",
        "NUM-30 to NUM-36: softmax, norms and losses, with the sums above.",
        """
        _fused_rms_norm _fused_rms_norm_backward _log_softmax _log_softmax.out
        _log_softmax_backward_data _log_softmax_backward_data.out _softmax _softmax.out
        _softmax_backward_data _softmax_backward_data.out native_layer_norm
        native_layer_norm_backward nll_loss_backward nll_loss_backward.grad_input
        nll_loss_forward nll_loss_forward.output
        """,
    ),
    Section(
        "adding at indices",
        "replaced",
        "NUM-37: in ascending order of the source.",
        """
        _index_put_impl_ embedding_dense_backward index_add index_add.out index_add_ scatter_add
        scatter_add.out scatter_add_ scatter_reduce.two scatter_reduce.two_out
        scatter_reduce_.two
        """,
    ),
    Section(
        "attention",
        "replaced",
        "NUM-40 to NUM-43: the bits of the written-out form.",
        """
        _scaled_dot_product_attention_math _scaled_dot_product_flash_attention_for_cpu
        _scaled_dot_product_flash_attention_for_cpu_backward scaled_dot_product_attention
        """,
    ),
    Section(
        "random numbers",
        "replaced",
        "NUM-60 to NUM-65: Philox by seed, stream and element.",
        """
        bernoulli.out bernoulli_.Tensor bernoulli_.float exponential_ multinomial multinomial.out
        native_dropout native_dropout_backward normal_ random_ random_.from random_.to
        randperm.generator_out uniform_
        """,
    ),
    Section(
        "orders",
        "replaced",
        "NUM-70: stable by index.",
        "sort.stable sort.values_stable topk topk.values",
    ),
    Section(
        "optimisers",
        "replaced",
        "NUM-80: the bits of the loop over single operations.",
        """
        _fused_adam_ _fused_adam_.tensor_lr _fused_adamw_ _fused_adamw_.tensor_lr _fused_sgd_
        _fused_sgd_.tensor_lr
        """,
    ),
    Section(
        "quantised weights",
        "own",
        "NUM-130 to NUM-136: the products above on widened weights, or exact sums of integers.",
        """
        kolm_portable::dequantise_fp8 kolm_portable::dequantise_int kolm_portable::dequantise_mxfp4
        kolm_portable::dequantise_nvfp4 kolm_portable::quantised_linear_fp8
        kolm_portable::quantised_linear_int kolm_portable::quantised_linear_int_dynamic
        kolm_portable::quantised_linear_mxfp4 kolm_portable::quantised_linear_nvfp4
        """,
    ),
)
"""Every section; those of the project's own kernels come last."""
