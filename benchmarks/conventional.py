"""LeNet-5 on MNIST as tutorials write it: one script that does the same job as the pipeline with `lenet5-tanh`.

torchvision downloads MNIST. In each epoch two worker processes open each image with PIL, pad it to 32x32, and turn it
into a normalised tensor. PyTorch's layers and optimiser train on mini-batches of 64. The test accuracy is computed
overall and for each digit, and two pictures are drawn. Prints the seconds of each epoch.
"""

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder for torchvision's MNIST")
    parser.add_argument("--mirror", help="URL to download it from if it is missing")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=60000, help="train on only the first of them")
    options = parser.parse_args()

    torch.manual_seed(0)
    if options.mirror:
        datasets.MNIST.mirrors = [options.mirror]
    transform = transforms.Compose(
        [transforms.Pad(2), transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )
    train_set = datasets.MNIST(options.data, train=True, download=True, transform=transform)
    test_set = datasets.MNIST(options.data, train=False, download=True, transform=transform)
    train_set = Subset(train_set, range(options.images))
    train_loader = DataLoader(train_set, batch_size=64, shuffle=True, num_workers=2)
    test_loader = DataLoader(test_set, batch_size=1000, num_workers=2)

    model = nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.Tanh(),
        nn.Linear(120, 84),
        nn.Tanh(),
        nn.Linear(84, 10),
    )
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    losses = []
    for epoch in range(1, options.epochs + 1):
        started = time.perf_counter()
        model.train()
        total = 0.0
        for images, labels in train_loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(train_loader))
        print(f"epoch {epoch}: loss {losses[-1]:.4f}, {time.perf_counter() - started:.3f} s", flush=True)

    model.eval()
    counts = torch.zeros(10, 10, dtype=torch.int64)
    with torch.no_grad():
        for images, labels in test_loader:
            for actual, predicted in zip(labels, model(images).argmax(dim=1), strict=True):
                counts[actual, predicted] += 1
    right, support = counts.diagonal(), counts.sum(dim=1)
    print(f"accuracy {right.sum() / support.sum():.2%}")
    for digit in range(10):
        print(f"  of {digit}: {right[digit] / support[digit]:.2%}")

    plt.plot(range(1, options.epochs + 1), losses)
    plt.xlabel("Epoch")
    plt.ylabel("Loss")
    plt.savefig(options.data / "loss.png")
    plt.figure()
    plt.imshow(counts, cmap="Blues")
    plt.xlabel("Predicted")
    plt.ylabel("Actual")
    plt.savefig(options.data / "confusion.png")


if __name__ == "__main__":
    main()
