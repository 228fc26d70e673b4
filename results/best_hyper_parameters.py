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
        "resnet20": {
            # confirmed on 2026-11-22 by tune_adamsrt 0.1.0 on 5 fresh seeds, mean +- standard deviation:
            # validation accuracy 38.26 % +- 1.24, test accuracy 39.70 % +- 1.47
            # 8 epochs, 2000 training examples only; 8 candidates in 8 trials, 64 epochs spent
            # and 80 to confirm; of 2 confirmed, the best by validation
            # study resnet20-cifar10-adam-resnet20-cifar10-reduced, trial 1, MLflow run 0659ce797caa4550b1c5b1f52cd47425
            # seeds 2820712367, 2847893008, 3264002610, 3284139898, 3828762089; the first one again, on a CPU:
            # python training_example.py --dataloader=cifar10 --model=resnet20 --optimizer=adam --epochs=8 \
            # --batch-size=128 --valid-split=0.05 --split-seed=0 --limit-train-examples=2000 --seed=2820712367 \
            # --threads=1
            "adam": {
                "lr": 0.0011205837185064174,
                "betas": (0.9162609403519981, 0.994919911208),
                "weight_decay": 0.0016541538337731016,
            },
            # confirmed on 2026-11-22 by tune_adamsrt 0.1.0 on 5 fresh seeds, mean +- standard deviation:
            # validation accuracy 36.99 % +- 0.86, test accuracy 38.64 % +- 1.48
            # 8 epochs, 2000 training examples only; 8 candidates in 8 trials, 64 epochs spent
            # and 80 to confirm; of 2 confirmed, the best by validation
            # study resnet20-cifar10-adamsrt-resnet20-cifar10-reduced, trial 1, MLflow run 717d22c03a0d4900a4ae53fea5934b76
            # seeds 2820712367, 2847893008, 3264002610, 3284139898, 3828762089; the first one again, on a CPU:
            # python training_example.py --dataloader=cifar10 --model=resnet20 --optimizer=adamsrt --epochs=8 \
            # --batch-size=128 --valid-split=0.05 --split-seed=0 --limit-train-examples=2000 --seed=2820712367 \
            # --threads=1
            "adamsrt": {
                "lr": 0.0011205837185064174,
                "betas": (0.9162609403519981, 0.994919911208),
                "weight_decay": 0.0016541538337731016,
            },
            # confirmed on 2026-11-22 by tune_adamsrt 0.1.0 on 5 fresh seeds, mean +- standard deviation:
            # validation accuracy 37.36 % +- 1.06, test accuracy 38.48 % +- 1.18
            # 8 epochs, 2000 training examples only; 8 candidates in 8 trials, 64 epochs spent
            # and 80 to confirm; of 2 confirmed, the best by validation
            # study resnet20-cifar10-sgd-resnet20-cifar10-reduced, trial 4, MLflow run b09b86d7143c4540b867c70570fd5bb5
            # seeds 2820712367, 2847893008, 3264002610, 3284139898, 3828762089; the first one again, on a CPU:
            # python training_example.py --dataloader=cifar10 --model=resnet20 --optimizer=sgd --epochs=8 \
            # --batch-size=128 --valid-split=0.05 --split-seed=0 --limit-train-examples=2000 --seed=2820712367 \
            # --threads=1
            "sgd": {"lr": 0.05059803874660431, "momentum": 0.626267449593, "weight_decay": 0.0},
        },
    },
    "digits": {
        "resnet20": {
            # confirmed on 2026-11-22 by tune_adamsrt 0.1.0 on 5 fresh seeds, mean +- standard deviation:
            # validation accuracy 99.16 % +- 0.53, test accuracy 97.89 % +- 0.67
            # 10 epochs; 19 candidates in 29 trials, 238 epochs spent
            # and 150 to confirm; of 3 confirmed, the best by validation
            # study resnet20-digits-adam-resnet20-digits, trial 15, MLflow run b3fb78d6d28e4ade9dd5f603fd1cd7bf
            # seeds 2820712367, 2847893008, 3264002610, 3284139898, 3828762089; the first one again, on a CPU:
            # python training_example.py --dataloader=digits --model=resnet20 --optimizer=adam --epochs=10 \
            # --batch-size=32 --valid-split=0.2 --split-seed=0 --seed=2820712367 --threads=1
            "adam": {
                "lr": 0.010791765899895578,
                "betas": (0.8975986250732441, 0.909976023714),
                "weight_decay": 0.0007155803483055226,
            },
            # confirmed on 2026-11-22 by tune_adamsrt 0.1.0 on 5 fresh seeds, mean +- standard deviation:
            # validation accuracy 99.02 % +- 0.57, test accuracy 97.61 % +- 0.50
            # 10 epochs; 16 candidates in 33 trials, 240 epochs spent
            # and 150 to confirm; of 3 confirmed, the best by validation
            # study resnet20-digits-adamg-resnet20-digits, trial 16, MLflow run 4f05f3fcb29643c2b5b15ca6431ef559
            # seeds 2820712367, 2847893008, 3264002610, 3284139898, 3828762089; the first one again, on a CPU:
            # python training_example.py --dataloader=digits --model=resnet20 --optimizer=adamg --epochs=10 \
            # --batch-size=32 --valid-split=0.2 --split-seed=0 --seed=2820712367 --threads=1
            "adamg": {
                "lr": 0.03204532374187998,
                "betas": (0.8444684166915291, 0.995935622249),
                "weight_decay": 0.00387698078276245,
            },
            # confirmed on 2026-11-22 by tune_adamsrt 0.1.0 on 5 fresh seeds, mean +- standard deviation:
            # validation accuracy 99.37 % +- 0.16, test accuracy 98.00 % +- 0.63
            # 10 epochs; 16 candidates in 30 trials, 232 epochs spent
            # and 150 to confirm; of 3 confirmed, the best by validation
            # study resnet20-digits-adams-resnet20-digits, trial 0, MLflow run 5bb1d5de485e4ff78058d8045762f5a0
            # seeds 2820712367, 2847893008, 3264002610, 3284139898, 3828762089; the first one again, on a CPU:
            # python training_example.py --dataloader=digits --model=resnet20 --optimizer=adams --epochs=10 \
            # --batch-size=32 --valid-split=0.2 --split-seed=0 --seed=2820712367 --threads=1
            "adams": {
                "lr": 0.0022881136684755237,
                "betas": (0.9287340859470354, 0.987811602401),
                "weight_decay": 4.773246456900521e-05,
            },
            # confirmed on 2026-11-22 by tune_adamsrt 0.1.0 on 5 fresh seeds, mean +- standard deviation:
            # validation accuracy 99.37 % +- 0.29, test accuracy 98.17 % +- 0.54
            # 10 epochs; 13 candidates in 31 trials, 238 epochs spent
            # and 150 to confirm; of 3 confirmed, the best by validation
            # study resnet20-digits-adamsrt-resnet20-digits, trial 10, MLflow run c6f8e758adcd44198e58c19db4ffffd6
            # seeds 2820712367, 2847893008, 3264002610, 3284139898, 3828762089; the first one again, on a CPU:
            # python training_example.py --dataloader=digits --model=resnet20 --optimizer=adamsrt --epochs=10 \
            # --batch-size=32 --valid-split=0.2 --split-seed=0 --seed=2820712367 --threads=1
            "adamsrt": {
                "lr": 0.004427022084550575,
                "betas": (0.8183702174424071, 0.978582881189),
                "weight_decay": 6.702040651665334e-05,
            },
            # confirmed on 2026-11-22 by tune_adamsrt 0.1.0 on 5 fresh seeds, mean +- standard deviation:
            # validation accuracy 98.95 % +- 0.35, test accuracy 97.78 % +- 0.39
            # 10 epochs; 16 candidates in 32 trials, 240 epochs spent
            # and 150 to confirm; of 3 confirmed, the best by validation
            # study resnet20-digits-adamw-resnet20-digits, trial 7, MLflow run b33d5cf69497441f9c124fb9870189c1
            # seeds 2820712367, 2847893008, 3264002610, 3284139898, 3828762089; the first one again, on a CPU:
            # python training_example.py --dataloader=digits --model=resnet20 --optimizer=adamw --epochs=10 \
            # --batch-size=32 --valid-split=0.2 --split-seed=0 --seed=2820712367 --threads=1
            "adamw": {
                "lr": 0.0019619212427601325,
                "betas": (0.8746391491982942, 0.99796895099),
                "weight_decay": 0.004419795105236869,
            },
            # confirmed on 2026-11-22 by tune_adamsrt 0.1.0 on 5 fresh seeds, mean +- standard deviation:
            # validation accuracy 99.30 % +- 0.60, test accuracy 97.94 % +- 0.15
            # 10 epochs; 12 candidates in 33 trials, 232 epochs spent
            # and 150 to confirm; of 3 confirmed, the best by validation
            # study resnet20-digits-sgd-resnet20-digits, trial 4, MLflow run 5c22db6828084f8eafddeda6686c129e
            # seeds 2820712367, 2847893008, 3264002610, 3284139898, 3828762089; the first one again, on a CPU:
            # python training_example.py --dataloader=digits --model=resnet20 --optimizer=sgd --epochs=10 \
            # --batch-size=32 --valid-split=0.2 --split-seed=0 --seed=2820712367 --threads=1
            "sgd": {"lr": 0.05059803874660431, "momentum": 0.626267449593, "weight_decay": 0.0},
            # confirmed on 2026-11-22 by tune_adamsrt 0.1.0 on 5 fresh seeds, mean +- standard deviation:
            # validation accuracy 98.89 % +- 0.52, test accuracy 98.06 % +- 0.52
            # 10 epochs; 11 candidates in 36 trials, 238 epochs spent
            # and 150 to confirm; of 3 confirmed, the best by validation
            # study resnet20-digits-sgdmrt-resnet20-digits, trial 0, MLflow run 5d2e569899494a808144e8594c3bb10e
            # seeds 2820712367, 2847893008, 3264002610, 3284139898, 3828762089; the first one again, on a CPU:
            # python training_example.py --dataloader=digits --model=resnet20 --optimizer=sgdmrt --epochs=10 \
            # --batch-size=32 --valid-split=0.2 --split-seed=0 --seed=2820712367 --threads=1
            "sgdmrt": {"lr": 0.044303752452182654, "momentum": 0.83590880383, "weight_decay": 8.624429501513192e-05},
        },
    },
}
