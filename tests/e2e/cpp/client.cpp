// Calls a Penstock gateway with stubs made from protos/ alone, over grpc++: `client HOST:PORT`. Prints one JSON object.
#include <chrono>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "penstock/oip/inference.grpc.pb.h"

using inference::GRPCInferenceService;
using inference::ModelInferRequest;
using inference::ModelInferResponse;
using inference::ModelStreamInferResponse;

static void hurry(grpc::ClientContext &context, int milliseconds = 20000) {
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(milliseconds));
}

static ModelInferRequest row(const std::string &model, const std::string &id) {
  ModelInferRequest request;
  request.set_model_name(model);
  request.set_id(id);
  auto *tensor = request.add_inputs();
  tensor->set_name("x");
  tensor->set_datatype("FP32");
  tensor->add_shape(1);
  tensor->add_shape(16);
  std::vector<float> values(16, 1.0f);
  request.add_raw_input_contents(reinterpret_cast<const char *>(values.data()), 64);
  return request;
}

static bool right(const ModelInferResponse &response) {
  if (response.raw_output_contents_size() != 1 || response.raw_output_contents(0).size() != 64) return false;
  const float *values = reinterpret_cast<const float *>(response.raw_output_contents(0).data());
  for (int index = 0; index < 16; ++index)
    if (values[index] != 2.0f) return false;
  return true;
}

int main(int, char **arguments) {
  auto channel = grpc::CreateChannel(arguments[1], grpc::InsecureChannelCredentials());
  auto stub = GRPCInferenceService::NewStub(channel);
  std::cout << "{";
  {
    inference::ServerLiveRequest request;
    inference::ServerLiveResponse response;
    grpc::ClientContext context;
    hurry(context);
    auto status = stub->ServerLive(&context, request, &response);
    std::cout << "\"live\": " << (status.ok() && response.live() ? "true" : "false");
  }
  {
    int good = 0;
    for (int number = 0; number < 100; ++number) {
      ModelInferResponse response;
      grpc::ClientContext context;
      hurry(context);
      auto status = stub->ModelInfer(&context, row("add1", std::to_string(number)), &response);
      good += status.ok() && right(response) && response.id() == std::to_string(number);
    }
    std::cout << ", \"unary\": " << good;
  }
  {
    ModelInferResponse response;
    grpc::ClientContext context;
    hurry(context);
    auto status = stub->ModelInfer(&context, row("nobody", "1"), &response);
    std::cout << ", \"missing\": " << status.error_code();
  }
  {
    grpc::ClientContext context;
    hurry(context);
    context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
    ModelInferResponse response;
    ModelInferRequest request = row("add1", "1");
    for (int index = 0; index < 100; ++index) (*request.mutable_parameters())["p" + std::to_string(index)].set_int64_param(1);
    auto status = stub->ModelInfer(&context, request, &response);
    std::cout << ", \"compressed\": " << status.error_code();
  }
  {
    grpc::ClientContext context;
    hurry(context);
    auto stream = stub->ModelStreamInfer(&context);
    std::thread writer([&] {
      for (int number = 0; number < 50; ++number) stream->Write(row(number == 7 ? "nobody" : "add1", std::to_string(number)));
      stream->WritesDone();
    });
    ModelStreamInferResponse response;
    int count = 0, good = 0, failed = -1;
    while (stream->Read(&response)) {
      if (!response.error_message().empty()) failed = count;
      good += response.infer_response().id() == std::to_string(count) && (failed == count || right(response.infer_response()));
      ++count;
    }
    writer.join();
    std::cout << ", \"stream\": " << good << ", \"stream_failed\": " << failed
              << ", \"stream_status\": " << stream->Finish().error_code();
  }
  {
    grpc::ClientContext context;
    hurry(context);
    context.AddMetadata("triton_grpc_error", "true");
    auto stream = stub->ModelStreamInfer(&context);
    stream->Write(row("add1", "0"));
    stream->Write(row("nobody", "1"));
    ModelStreamInferResponse response;
    int count = 0;
    while (stream->Read(&response)) ++count;
    std::cout << ", \"strict_answers\": " << count << ", \"strict_status\": " << stream->Finish().error_code();
  }
  {
    grpc::ClientContext context;
    hurry(context, 300);
    auto stream = stub->ModelStreamInfer(&context);
    stream->Write(row("add1", "0"));
    ModelStreamInferResponse response;
    int count = 0;
    while (stream->Read(&response)) ++count;
    std::cout << ", \"late_answers\": " << count << ", \"late_status\": " << stream->Finish().error_code();
  }
  {
    grpc::ClientContext context;
    hurry(context);
    auto stream = stub->ModelStreamInfer(&context);
    stream->Write(row("add1", "0"));
    ModelStreamInferResponse response;
    stream->Read(&response);
    context.TryCancel();
    while (stream->Read(&response)) {}
    std::cout << ", \"cancelled_status\": " << stream->Finish().error_code();
  }
  std::cout << "}" << std::endl;
  return 0;
}
