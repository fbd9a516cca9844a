"""The official PyTorch MNIST example, with its network and settings, until it reaches 99.0% on the test set.

After https://github.com/pytorch/examples/tree/main/mnist (BSD-3-Clause): two 3x3 convolutions with 32 and 64 channels,
dense layers of 128 and 10, dropout, log-softmax, mini-batches of 64, and Adadelta with a learning rate of 1 that is
multiplied by 0.7 after each epoch. On a CPU the example loads its data without worker processes. Prints a line per
epoch: its number, the seconds of training so far, the test accuracy.
"""

import argparse
import time

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as f
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 1)
        self.conv2 = nn.Conv2d(32, 64, 3, 1)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = f.relu(self.conv2(f.relu(self.conv1(x))))
        x = torch.flatten(self.dropout1(f.max_pool2d(x, 2)), 1)
        x = self.dropout2(f.relu(self.fc1(x)))
        return f.log_softmax(self.fc2(x), dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="folder that holds torchvision's MNIST")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=14, help="at most")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    train_loader = DataLoader(datasets.MNIST(options.data, True, transform), batch_size=64, shuffle=True)
    test_loader = DataLoader(datasets.MNIST(options.data, False, transform), batch_size=1000)
    model = Net()
    optimizer = optim.Adadelta(model.parameters(), lr=1.0)
    scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    seconds = 0.0
    for epoch in range(1, options.epochs + 1):
        started = time.perf_counter()
        model.train()
        for images, labels in train_loader:
            optimizer.zero_grad()
            f.nll_loss(model(images), labels).backward()
            optimizer.step()
        scheduler.step()
        seconds += time.perf_counter() - started
        model.eval()
        with torch.no_grad():
            correct = sum((model(images).argmax(1) == labels).sum().item() for images, labels in test_loader)
        print(epoch, f"{seconds:.3f}", correct / 10000, flush=True)
        if correct >= 9900:
            break


if __name__ == "__main__":
    main()
