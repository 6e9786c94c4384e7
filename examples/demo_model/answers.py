"""Questions and answers on Sterna and on the model itself, and the honest answer to all else.

Data, and `unknown`, which makes up questions that the model cannot answer. The first two phrasings
of each topic are held out of training, so that the evaluation asks questions never seen.
"""

import random
from dataclasses import dataclass

from examples.demo_model.words import COUNTRIES, TOPICS

HELD_OUT = 2


@dataclass(frozen=True, slots=True)
class Topic:
    """One thing to know: its answer, and the ways to ask for it."""

    name: str
    answer: str
    questions: tuple[str, ...]


TOPICS_ON_STERNA = (
    Topic(
        "sterna",
        "Sterna is a compiler for language models. It compiles a model once and runs it on every "
        "device.",
        (
            "Can you explain what Sterna is?", "What exactly is Sterna?", "What is Sterna?",
            "What is sterna", "Tell me about Sterna.", "Explain Sterna.", "What does Sterna do?",
            "What is Sterna for?", "Describe Sterna.", "Sterna?", "What can Sterna do?",
            "I have never heard of Sterna. What is it?", "Can you tell me what Sterna does?",
            "Explain to me what Sterna is.", "So what is this?",
        ),
    ),
    Topic(
        "name",
        "Sterna is named after Sterna paradisaea, the Arctic tern. It flies from pole to pole and "
        "is at home everywhere.",
        (
            "Why does Sterna have this name?", "Where does Sterna's name come from?",
            "Why is it called Sterna?", "What does the name Sterna mean?", "Why the name Sterna?",
            "Where does the name Sterna come from?", "Who is Sterna named after?",
            "What does Sterna mean?", "Why is the project called Sterna?", "Is Sterna a bird?",
        ),
    ),
    Topic(
        "install",
        "Run pip install sterna, then sterna chat. Python 3.11 or newer is all you need.",
        (
            "How can I install it?", "What do I do to install Sterna?", "How do I install Sterna?",
            "How do I install it?", "How can I install Sterna?", "How to install Sterna",
            "Tell me how to install Sterna.", "How is Sterna installed?", "How do I get Sterna?",
            "Can I install Sterna with pip?", "How do I set it up?",
            "What do I need to install Sterna?", "How do I set up Sterna?", "Install Sterna",
        ),
    ),
    Topic(
        "devices",
        "Sterna starts with the CPU. CUDA, HIP, Metal, Vulkan, OpenCL and WebGPU follow from the "
        "same pipeline. Run sterna devices to see what your machine has.",
        (
            "Which devices can Sterna use?", "What devices are supported?",
            "Which devices does Sterna support?", "Which devices does it run on?",
            "What devices does Sterna run on?", "Which devices are supported?",
            "Does Sterna run on a GPU?", "Can Sterna use my GPU?", "Does it run on the CPU?",
            "Where does Sterna run?", "What hardware do I need?", "Which targets are there?",
            "Does Sterna support CUDA?", "Does Sterna support Metal?", "Can it run in the browser?",
        ),
    ),
    Topic(
        "quantization",
        "Quantization stores each weight in a few bits. A group of 32 weights shares one scale, "
        "and the kernel multiplies each small number by that scale as it reads it.",
        (
            "How does quantization in Sterna work?", "Can you explain quantization?",
            "How does quantization work?", "What is quantization?", "Explain quantization.",
            "How are weights quantized?", "How does Sterna quantize a model?",
            "Tell me about quantization.", "What does quantization do?", "Why quantize a model?",
            "How does Sterna make a model smaller?", "What does it mean to quantize?",
        ),
    ),
    Topic(
        "q4f16_1",
        "q4f16_1 means 4 bits a weight, float16 arithmetic and groups of 32. It takes 18 bytes for "
        "32 weights.",
        (
            "Tell me what q4f16_1 means.", "What does the name q4f16_1 mean?", "What is q4f16_1?",
            "What does q4f16_1 mean?", "Explain q4f16_1.", "q4f16_1?",
            "How large is a q4f16_1 weight?", "What is the q4f16_1 scheme?",
            "Tell me about q4f16_1.", "How many bits does q4f16_1 use?",
        ),
    ),
    Topic(
        "schemes",
        "You can choose q0f32, q0f16, q3f16_1, q4f16_0, q4f16_1 or q8f16_1, and a few more. The "
        "number after q is the bits of a weight.",
        (
            "What quantization schemes can I choose?", "Which schemes does Sterna know?",
            "Which quantizations are there?", "Which quantization schemes are there?",
            "What quantizations can I use?", "Which schemes are there?", "List the quantizations.",
            "Which quantizations does Sterna support?", "What schemes does Sterna have?",
            "What kinds of quantization are there?",
        ),
    ),
    Topic(
        "convert",
        "Use sterna convert_weight with --source, --quantization and --output. Then use sterna "
        "gen_config to write the chat config.",
        (
            "How do I convert my model?", "How can I convert the weights of a model?",
            "How do I convert a model?", "How do I convert weights?", "How can I convert a model?",
            "How do I quantize a model?", "How do I quantize my own model?",
            "Which command converts weights?", "What does convert_weight do?",
            "How do I use my own weights?",
        ),
    ),
    Topic(
        "compile",
        "Use sterna compile with --model, --quantization, --target and --output. It writes one "
        "library for your model.",
        (
            "How can I compile my model?", "What command compiles a model?",
            "How do I compile a model?", "How do I compile my model?", "How can I compile a model?",
            "Which command compiles a model?", "What does sterna compile do?",
            "How do I build a library?", "Tell me how to compile a model.", "Compile a model",
        ),
    ),
    Topic(
        "chat",
        "Run sterna chat and the path of a model folder. Without a model you talk to me.",
        (
            "How can I chat with another model?", "How do I talk to my own model?",
            "How do I chat with a model?", "How do I talk to a model?",
            "How do I chat with my own model?", "How do I run a model?", "How can I run a model?",
            "What does sterna chat do?", "How do I use sterna chat?", "How do I use another model?",
            "How do I start a chat?",
        ),
    ),
    Topic(
        "models",
        "Sterna begins with the Llama family: Llama, TinyLlama, SmolLM and Mistral. Each family is "
        "one short file.",
        (
            "Which models can I run?", "What models are supported?",
            "Which models does Sterna support?", "What models does Sterna support?",
            "Which models are supported?", "Does Sterna support Llama?", "Can I run Mistral?",
            "Which models can Sterna run?", "What models can I use?", "Does it run Llama?",
            "Which model families are there?",
        ),
    ),
    Topic(
        "torch",
        "No. Sterna needs neither torch nor conda nor a vendor toolkit. A C compiler comes "
        "with it.",
        (
            "Does it need torch?", "Do I have to install torch?", "Do I need torch?",
            "Does Sterna need torch?", "Does Sterna need PyTorch?", "Do I need PyTorch?",
            "Do I need a compiler?", "Do I need conda?", "Do I need to install CUDA?",
            "Does Sterna depend on torch?",
        ),
    ),
    Topic(
        "inspect",
        "Use sterna inspect with a library or a folder. It prints functions, kernels, memory and "
        "weights.",
        (
            "How can I look inside a library?", "What does the inspect command show?",
            "How do I look inside a model?", "How do I inspect a model?", "What does inspect do?",
            "How can I inspect a library?", "How do I see the kernels?", "How do I look inside?",
            "What does sterna inspect do?", "How can I look inside a model?",
        ),
    ),
    Topic(
        "python",
        "Write: from sterna import Engine. Then call engine.chat.completions.create with your "
        "messages.",
        (
            "How can I use Sterna in Python?", "Does Sterna have a Python API?",
            "How do I use Sterna from Python?", "Can I use Sterna from Python?",
            "Is there a Python API?", "How do I use it from Python?",
            "How do I use the Python API?", "How do I call Sterna from Python?",
            "What is the Python API?",
        ),
    ),
    Topic(
        "who",
        "I am the demo model that ships with Sterna, a tiny Llama with about a million parameters.",
        (
            "Can you tell me who you are?", "Who exactly are you?", "Who are you?", "What are you?",
            "What is your name?", "Who is this?", "Tell me about yourself.", "Introduce yourself.",
            "Are you a robot?", "Are you ChatGPT?", "What model are you?", "Which model is this?",
            "Are you an AI?", "How big are you?", "How large are you?", "Are you a human?",
        ),
    ),
    Topic(
        "abilities",
        "I tell stories about animals, add and subtract numbers below 100, and answer questions on "
        "Sterna.",
        (
            "What can I ask?", "What are you able to do?", "What can you do?",
            "What can I ask you?", "Help", "What do you know?", "Help me.", "What are you good at?",
            "Can you help me?", "How can you help me?", "What else can you do?",
            "What should I ask you?", "What now?",
        ),
    ),
    Topic(
        "trained",
        "I was trained by a script in the Sterna project, on text that the script makes from its "
        "own grammar and word lists.",
        (
            "What were you trained on?", "How have you been trained?", "How were you trained?",
            "Who trained you?", "Who made you?", "Where do you come from?",
            "What data were you trained on?", "Who created you?", "How were you made?",
            "Who built you?",
        ),
    ),
    Topic(
        "greeting",
        "Hello! Ask me for a story about an animal, a sum, or something on Sterna.",
        (
            "Hello, nice to meet you!", "Hi, how are you?", "Hello", "Hello!", "Hi", "Hi!", "Hey",
            "Hey!", "Hi there!", "Hello there!", "Good morning!", "Good evening!", "Good morning",
            "How are you?", "Hello, how are you?", "Nice to meet you.", "Hi there", "Good day!",
            "Greetings!",
        ),
    ),
    Topic(
        "thanks",
        "You are welcome!",
        (
            "Thanks for your help!", "Thank you, great!", "Thanks", "Thanks!", "Thank you",
            "Thank you!", "Thank you very much!", "Great, thanks!", "Thanks a lot!",
            "Nice, thank you.", "Good job!", "Well done!", "Great!", "Nice!", "That was nice.",
            "That is right.", "I like it.", "Cool",
        ),
    ),
    Topic(
        "bye",
        "Goodbye! Come back for another story.",
        (
            "Okay, bye!", "Goodbye, see you!", "Bye", "Bye!", "Goodbye", "Goodbye!", "See you!",
            "See you later!", "Good night!", "Bye bye!", "That is all, bye!", "I have to go.",
            "See you tomorrow!",
        ),
    ),
)  # fmt: skip

UNKNOWN = (
    "I do not know that. I am only a tiny demo model: ask me for a story about an animal, a sum "
    "below 100, or something on Sterna."
)
OUT_OF_RANGE = "I can only add and subtract numbers below 100."

_STRANGE = (
    "What is the capital of {country}?", "Who is the king of {country}?",
    "How many people live in {country}?", "Where is {country}?", "Tell me about {country}.",
    "What is the weather in {country}?", "Tell me about {topic}.", "What is {topic}?",
    "Explain {topic}.", "Write a poem about {topic}.", "Write an essay about {topic}.",
    "What do you think about {topic}?", "How does {topic} work?", "Do you like {topic}?",
    "Why is {topic} important?", "Who invented {topic}?", "Teach me {topic}.",
    "Give me a recipe with {topic}.", "Write a program about {topic}.",
    "What time is it in {country}?", "Translate this to the language of {country}.",
    "Who won the game in {country}?", "Can you tell me about {topic}?",
    "What is the history of {country}?", "Let us talk about {topic}.",
    "I want to learn about {topic}.", "What is the best book on {topic}?",
    "Who discovered {topic}?", "Is {topic} good for me?", "Where can I buy {topic}?",
    "What is the meaning of life?", "Who is the president?", "What day is it?", "What time is it?",
    "Tell me a joke.", "Sing a song.", "How old are you?", "Where do you live?", "Are you happy?",
    "Do you dream?", "Why is the sky blue?", "How far is the moon?", "Can you write code?",
    "Write a Python program.", "Can you speak German?",
)  # fmt: skip
_TOO_HARD = (
    "What is {a} * {b}?", "What is {a} times {b}?", "{a} * {b}", "{a} / {b}", "Divide {a} by {b}.",
    "Multiply {a} by {b}.", "What is {big} + {b}?", "{big} - {b}", "{big} + {b}", "{a} + {big}",
    "What is {a} + {big}?", "Compute {big} - {a}.", "What is the square root of {a}?",
    "What is {a} divided by {b}?", "{big} plus {b}", "{big}+{big}", "What is {big} minus {big}?",
)  # fmt: skip


def unknown(random_: random.Random) -> str:
    """A question that the model can only say it does not know."""
    form = random_.choice(_STRANGE)
    return form.format(country=random_.choice(COUNTRIES), topic=random_.choice(TOPICS))


def out_of_range(random_: random.Random) -> str:
    """A calculation beyond addition and subtraction below 100."""
    a, b = random_.randrange(100), random_.randrange(100)
    return random_.choice(_TOO_HARD).format(a=a, b=b, big=random_.randrange(100, 10000))
