"""The best known hyper-parameters: BEST_HYPER_PARAMETERS[dataset][model][optimizer].

A search writes here: `python -m tune_adamsrt.search --setting resnet20-digits` replaces the entry that it has tuned and
leaves the others as they are. The comment above an entry says where it comes from. Data only: a file that holds code is
refused and not changed.

    from adamsrt.optimizers import build_optimizer
    from best_hyper_parameters import BEST_HYPER_PARAMETERS

    optimizer = build_optimizer("adamsrt", model, **BEST_HYPER_PARAMETERS["cifar10"]["resnet18"]["adamsrt"])
"""

BEST_HYPER_PARAMETERS = {
    "cifar10": {
        "resnet18": {
            # published: arXiv:2006.13382
            "adam": {"lr": 0.001, "betas": (0.9, 0.999), "weight_decay": 7.8125e-06},
            # published: arXiv:2006.13382
            "adamg": {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.0005},
            # published: arXiv:2006.13382
            "adams": {"lr": 0.001, "betas": (0.9, 0.99), "weight_decay": 1.5625e-05},
            # published: arXiv:2006.13382
            "adamsrt": {"lr": 0.001, "betas": (0.9, 0.99), "weight_decay": 7.8125e-06},
            # published: arXiv:2006.13382
            "adamw": {"lr": 0.001, "betas": (0.9, 0.99), "weight_decay": 6.25e-05},
            # published: arXiv:2006.13382
            "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.00025},
            # published: arXiv:2006.13382
            "sgdmrt": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.00025},
        },
        "resnet20": {
            # published: arXiv:2006.13382
            "adam": {"lr": 0.001, "betas": (0.9, 0.99), "weight_decay": 0.0005},
            # published: arXiv:2006.13382
            "adamg": {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.0005},
            # published: arXiv:2006.13382
            "adams": {"lr": 0.001, "betas": (0.9, 0.99), "weight_decay": 0.0005},
            # published: arXiv:2006.13382
            "adamsrt": {"lr": 0.001, "betas": (0.9, 0.99), "weight_decay": 7.8125e-06},
            # published: arXiv:2006.13382
            "adamw": {"lr": 0.001, "betas": (0.9, 0.99)},
            # published: arXiv:2006.13382
            "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.00025},
            # published: arXiv:2006.13382
            "sgdmrt": {"lr": 0.1, "momentum": 0.9, "weight_decay": 3.125e-05},
        },
        "vgg16": {
            # published: arXiv:2006.13382
            "adam": {"lr": 0.001, "betas": (0.9, 0.999), "weight_decay": 3.125e-05},
            # published: arXiv:2006.13382
            "adamg": {"lr": 0.01, "betas": (0.9, 0.999), "weight_decay": 0.0005},
            # published: arXiv:2006.13382
            "adams": {"lr": 0.001, "betas": (0.9, 0.999), "weight_decay": 3.125e-05},
            # published: arXiv:2006.13382
            "adamsrt": {"lr": 0.001, "betas": (0.9, 0.999), "weight_decay": 1.5625e-05},
            # published: arXiv:2006.13382
            "adamw": {"lr": 0.001, "betas": (0.9, 0.999), "weight_decay": 0.00025},
            # published: arXiv:2006.13382
            "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.00025},
            # published: arXiv:2006.13382
            "sgdmrt": {"lr": 0.1, "momentum": 0.9, "weight_decay": 6.25e-05},
        },
    },
    "cifar100": {
        "resnet18": {
            # published: arXiv:2006.13382
            "adam": {"lr": 0.001, "betas": (0.9, 0.999), "weight_decay": 0.000125},
            # published: arXiv:2006.13382
            "adamg": {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.0005},
            # published: arXiv:2006.13382
            "adams": {"lr": 0.001, "betas": (0.9, 0.99), "weight_decay": 0.000125},
            # published: arXiv:2006.13382
            "adamsrt": {"lr": 0.001, "betas": (0.9, 0.999), "weight_decay": 0.0},
            # published: arXiv:2006.13382
            "adamw": {"lr": 0.001, "betas": (0.9, 0.99), "weight_decay": 0.000125},
            # published: arXiv:2006.13382
            "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0005},
            # published: arXiv:2006.13382
            "sgdmrt": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0005},
        },
        "vgg16": {
            # published: arXiv:2006.13382
            "adam": {"lr": 0.001, "betas": (0.9, 0.99), "weight_decay": 6.25e-05},
            # published: arXiv:2006.13382
            "adamg": {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.0005},
            # published: arXiv:2006.13382
            "adams": {"lr": 0.001, "betas": (0.9, 0.99), "weight_decay": 6.25e-05},
            # published: arXiv:2006.13382
            "adamsrt": {"lr": 0.001, "betas": (0.9, 0.99), "weight_decay": 7.8125e-06},
            # published: arXiv:2006.13382
            "adamw": {"lr": 0.001, "betas": (0.9, 0.99), "weight_decay": 1.5625e-05},
            # published: arXiv:2006.13382
            "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0005},
            # published: arXiv:2006.13382
            "sgdmrt": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.000125},
        },
    },
    "imagenet": {
        "resnet18": {
            # published: arXiv:2006.13382
            "adam": {"lr": 0.001, "betas": (0.9, 0.99), "weight_decay": 7.8125e-06},
            # published: arXiv:2006.13382
            "adams": {"lr": 0.001, "betas": (0.9, 0.99), "weight_decay": 1.5625e-05},
            # published: arXiv:2006.13382
            "adamsrt": {"lr": 0.001, "betas": (0.9, 0.999), "weight_decay": 7.8125e-06},
            # published: arXiv:2006.13382
            "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 6.25e-05},
            # published: arXiv:2006.13382
            "sgdmrt": {"lr": 0.1, "momentum": 0.9, "weight_decay": 6.25e-05},
        },
    },
    "svhn": {
        "resnet18": {
            # published: arXiv:2006.13382
            "adam": {"lr": 0.001, "betas": (0.9, 0.999), "weight_decay": 0.0},
            # published: arXiv:2006.13382
            "adamg": {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.0005},
            # published: arXiv:2006.13382
            "adams": {"lr": 0.001, "betas": (0.9, 0.99), "weight_decay": 3.125e-05},
            # published: arXiv:2006.13382
            "adamsrt": {"lr": 0.001, "betas": (0.9, 0.999), "weight_decay": 7.8125e-06},
            # published: arXiv:2006.13382
            "adamw": {"lr": 0.001, "betas": (0.9, 0.999), "weight_decay": 7.8125e-06},
            # published: arXiv:2006.13382
            "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0005},
            # published: arXiv:2006.13382
            "sgdmrt": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0005},
        },
        "vgg16": {
            # published: arXiv:2006.13382
            "adam": {"lr": 0.001, "betas": (0.9, 0.99), "weight_decay": 0.0},
            # published: arXiv:2006.13382
            "adamg": {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.0005},
            # published: arXiv:2006.13382
            "adams": {"lr": 0.001, "betas": (0.9, 0.99), "weight_decay": 7.8125e-06},
            # published: arXiv:2006.13382
            "adamsrt": {"lr": 0.001, "betas": (0.9, 0.999), "weight_decay": 0.00025},
            # published: arXiv:2006.13382
            "adamw": {"lr": 0.001, "betas": (0.9, 0.99), "weight_decay": 3.125e-05},
            # published: arXiv:2006.13382
            "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0005},
            # published: arXiv:2006.13382
            "sgdmrt": {"lr": 0.1, "momentum": 0.9, "weight_decay": 3.125e-05},
        },
    },
}
