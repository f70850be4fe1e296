import torch
def test_it(toy, model, dataset):
    batch = toy.batch([toy.sample(), toy.sample((0,1,0), depths=(True, False), seed=1), toy.sample((), depths=(), seed=2)])
    out = model(**batch)
    print(out.losses, out.regions.ignored)
    print(dataset[0].text.input_ids.shape, len(dataset))
