import json

from torch import nn

from lq.backends.prepare import plan_of, prepare
from lq.config.qconfig import QConfig


def test_the_plan_prints_and_is_plain_data():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(), nn.Softmax(1), nn.Flatten(), nn.Linear(16, 2)
    )
    plan = plan_of(prepare(net, QConfig(exclude=("5",))))
    assert str(plan).splitlines() == [
        "Sequential, qconfig portable: 1 of 2 layers quantized, 2 fake quantizers, other operations in float: 2",
        "  0  Conv2d + BatchNorm2d + ReLU6  weight int7 [-63, 63] per channel",
        "  5  Linear  stays float: exclude '5'",
        "  fake quantizer fq_input_1 behind input_1: uint8 [0, 255] affine, moving_average_minmax",
        "  fake quantizer fq_0 behind 0: uint8 [0, 255] affine, moving_average_minmax, absorbs relu6",
        "  in float: 3 (Softmax), 5 (Linear)",
    ]
    plain = plan.to_dict()
    assert json.loads(json.dumps(plain))["layers"][0]["fused"] == ["BatchNorm2d", "ReLU6"]
    assert [row.name for row in plan.quantized] == ["0"]
