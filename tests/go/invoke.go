// Invokes a function once with the AWS SDK for Go v2, and prints the HTTP status: invoke URL FUNCTION TYPE PAYLOAD
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
)

func main() {
	url, function, kind, payload := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	// AWS_CA_BUNDLE, the region and the credentials come from the environment.
	settings, err := config.LoadDefaultConfig(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	client := lambda.NewFromConfig(settings, func(options *lambda.Options) {
		options.EndpointResolver = lambda.EndpointResolverFromURL(url)
		options.Retryer = retry.AddWithMaxAttempts(retry.NewStandard(), 1)
	})
	answer, err := client.Invoke(context.Background(), &lambda.InvokeInput{
		FunctionName:   aws.String(function),
		InvocationType: types.InvocationType(kind),
		Payload:        []byte(payload),
	})
	var refused *awshttp.ResponseError
	switch {
	case err == nil:
		fmt.Println(answer.StatusCode)
	case errors.As(err, &refused):
		fmt.Println(refused.HTTPStatusCode())
		fmt.Fprintln(os.Stderr, err)
	default:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
